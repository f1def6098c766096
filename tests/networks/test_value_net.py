import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.networks.value_net import ValueNet


def random_net(channels, seed=0, dtype=torch.float64):
    """A value net whose BN layer has statistics and affine parameters of its own."""
    torch.manual_seed(seed)
    net = ValueNet(channels)
    for tensor in (net.norm.running_mean, net.norm.weight.data, net.norm.bias.data):
        tensor.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net.to(dtype).eval()


def loop_resize(image, size):
    """Bilinear with half-pixel centres: (D, h, w) → (D, size, size), pixel by pixel."""
    _, height, width = image.shape
    resized = np.zeros((len(image), size, size))
    for i in range(size):
        for j in range(size):
            y = max((i + 0.5) * height / size - 0.5, 0)
            x = max((j + 0.5) * width / size - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
            lower = image[:, bottom, left] * (1 - (x - left)) + image[:, bottom, right] * (x - left)
            resized[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return resized


def loop_value(net, features):
    """The layers in the published order, (D, h, w) → a number."""
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    spread = np.sqrt(state["norm.running_var"] + 1e-5)
    normalised = np.stack(
        [
            (features[d] - state["norm.running_mean"][d]) / spread[d] * state["norm.weight"][d] + state["norm.bias"][d]
            for d in range(len(features))
        ]
    )
    reduced = np.tensordot(state["reduce.weight"][:, :, 0, 0], normalised, axes=1)
    value = state["estimate.weight"][0] @ loop_resize(reduced, 4).ravel() + state["estimate.bias"][0]
    return 1 / (1 + np.exp(-value))


@given(st.integers(1, 12), st.integers(1, 19), st.integers(1, 19), st.integers(1, 3), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_value_in_the_published_order(channels, height, width, batch, seed):
    net = random_net(channels, seed)
    features = torch.randn(batch, channels, height, width, dtype=torch.float64)
    with torch.no_grad():
        got = net(features)
    assert got.shape == (batch,)
    np.testing.assert_allclose(got, [loop_value(net, image) for image in features.numpy()], atol=1e-12)


def test_gradient_against_finite_differences():
    net = random_net(3)
    features = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (features,))
    assert torch.autograd.gradcheck(net.train(), (features,))


def test_batch_statistics_are_those_of_the_whole_map():
    net = ValueNet(3).train()
    features = torch.randn(2, 3, 32, 40) * torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1) + 5
    net(features)
    expected = 0.9 + 0.1 * features.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(net.norm.running_var, expected, rtol=1e-4, atol=1e-5)


def test_the_convolution_starts_as_xavier_and_has_no_bias():
    net = ValueNet(512)
    bound = (6 / (512 + 128)) ** 0.5
    assert net.reduce.bias is None
    assert 0.95 * bound < net.reduce.weight.abs().max().item() <= bound * (1 + 1e-6)  # of float32
    assert net.estimate.weight.shape == (1, 2048)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    net = random_net(8, dtype=torch.float32)
    features = torch.randn(2, 8, 9, 9).to(dtype)
    with torch.no_grad():
        expected = net(features.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = net(features)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
