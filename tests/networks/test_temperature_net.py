import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.networks.temperature_net import TemperatureNet


def random_inputs(seed=0, channels=6, classes=4, size=(8, 12), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, channels, size[0] // 4, size[1] // 4, generator=generator, dtype=dtype)
    return features, 5 * torch.randn(2, classes, *size, generator=generator, dtype=dtype)


def randomise(net, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net


def test_starts_at_exactly_one():
    temperatures = TemperatureNet(6, 4)(*random_inputs())
    assert temperatures.shape == (2, 1, 8, 12)
    assert (temperatures == 1).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 1e3, 1e6]), classes=st.integers(2, 150))
def test_stays_within_its_bounds(seed, scale, classes):
    net = randomise(TemperatureNet(6, classes), scale, seed)
    temperatures = net(*random_inputs(seed, classes=classes))
    assert (temperatures >= 0.05).all()
    assert (temperatures <= 20).all()


def test_reaches_both_bounds():
    temperatures = randomise(TemperatureNet(6, 4), 1e3)(*random_inputs())
    assert temperatures.min().item() == pytest.approx(0.05)
    assert temperatures.max().item() == pytest.approx(20)


def test_value_of_a_pixel_against_the_formula():
    net = randomise(TemperatureNet(6, 4, hidden=5), 0.3).double()
    _, logits = random_inputs(dtype=torch.float64)
    features = torch.randn(2, 6, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = net(features, logits).detach().numpy()
    weights = {name: value.detach().numpy().squeeze() for name, value in net.named_parameters()}
    for b, y, x in ((0, 0, 0), (1, 7, 11), (1, 3, 5)):
        near = weights["from_features.weight"] @ features[b, :, 0, 0].numpy() + weights["from_features.bias"]
        own = weights["from_logits.weight"] @ logits[b, :, y, x].numpy() + weights["from_logits.bias"]
        a = weights["last.weight"] @ np.maximum(near + own, 0) + weights["last.bias"]
        assert got[b, 0, y, x] == pytest.approx(np.exp(np.log(20) * np.tanh(a)), rel=1e-12)


def test_features_of_a_padded_image_stand_over_their_pixels():
    """Features h x w of an image padded to 16 x 16 of which 13 x 11 pixels are real: cells of 4 x 4 pixels."""
    net = randomise(TemperatureNet(6, 4, multiple=8), 0.3)
    features = torch.zeros(1, 6, 4, 4)
    features[..., 2, 1] = 1  # pixels 8 to 11, 4 to 7; bilinear reaches two further
    logits = torch.zeros(1, 4, 13, 11)
    differs = (net(features, logits) != net(torch.zeros_like(features), logits))[0, 0]
    rows, columns = differs.any(1).nonzero().flatten().tolist(), differs.any(0).nonzero().flatten().tolist()
    assert (rows[0], rows[-1]) == (6, 12)  # 13 is padding
    assert (columns[0], columns[-1]) == (2, 9)


def test_a_pixel_is_its_own():
    net = randomise(TemperatureNet(6, 4), 0.1)
    features, logits = random_inputs()
    changed = logits.clone()
    changed[0, :, 3, 4] += torch.tensor([3.0, -3, 0, 1])
    differs = (net(features, logits) != net(features, changed)).nonzero().tolist()
    assert differs == [[0, 0, 3, 4]]


def test_learns_from_its_start():
    net = TemperatureNet(6, 4)
    features, logits = random_inputs()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(50):
        loss = (net(features, logits).log() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_half_precision_is_raised():
    net = randomise(TemperatureNet(6, 4), 0.1)
    features, logits = (values.bfloat16() for values in random_inputs())
    assert net(features, logits).dtype == torch.float32
    torch.testing.assert_close(net(features, logits), net(features.float(), logits.float()))
