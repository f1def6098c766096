"""Which preprocessing a network was trained with."""

import pytest
import torch
from torch import nn

from sfda.networks.preprocessing import CONVENTIONS, clear_winner, declared, rank_preprocessing
from sfda.networks.segmenter import Segmenter


def images() -> torch.Tensor:
    """Smooth, reddish and dark, as no convention takes them for each other."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(8, 3, 4, 6, generator=generator)
    tint = torch.tensor([0.8, 0.5, 0.3]).view(1, 3, 1, 1)
    return nn.functional.interpolate(coarse * tint, size=(32, 48), mode="bilinear")


def segmenter(norm: type[nn.Module] = nn.BatchNorm2d) -> Segmenter:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(8, 5, 1))
    return Segmenter(network, 5, head="6").eval()


def use(model: Segmenter, convention) -> None:
    model.channel_order = convention.channel_order
    model.mean.copy_(torch.tensor(convention.mean).view(1, 3, 1, 1))
    model.std.copy_(torch.tensor(convention.std).view(1, 3, 1, 1))


@pytest.mark.parametrize("truth", CONVENTIONS, ids=lambda convention: convention.name)
def test_kept_statistics_tell_the_convention_of_the_training(truth):
    model = segmenter()
    use(model, truth)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for part in images().split(2):
            model(part)
    model.eval()
    assert declared(model) == truth
    ranked = rank_preprocessing(model, images())
    assert ranked[0].convention == truth
    assert clear_winner(model, ranked) is None
    wrong = next(convention for convention in CONVENTIONS if convention.std != truth.std)
    use(model, wrong)
    assert clear_winner(model, rank_preprocessing(model, images())) == truth


def test_the_network_is_as_before_afterwards():
    model = segmenter(lambda channels: nn.GroupNorm(2, channels))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ranked = rank_preprocessing(model, images())
    assert len(ranked) == len(CONVENTIONS)
    assert {it.divergence for it in ranked} == {0.0}
    assert [it.infomax for it in ranked] == sorted((it.infomax for it in ranked), reverse=True)
    assert model.training
    assert model.channel_order == "rgb"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_convention_of_its_own_is_tried_beside_the_others():
    model = segmenter()
    model.mean.fill_(0.1)
    own = declared(model)
    assert own not in CONVENTIONS
    assert own.name == "RGB, mean 0.1/0.1/0.1, deviation 0.229/0.224/0.225"
    assert own in [it.convention for it in rank_preprocessing(model, images())]


def test_the_order_of_channels_alike_is_told_by_predictions():
    """Red is 0.2 or 0.8; blue has the same mean and variance, but is 0.5 for half of the pixels."""
    red = torch.tensor([0.2, 0.8]).repeat(32, 64)
    blue = torch.tensor([0.5, 0.5, 0.5 - 0.3 * 2**0.5, 0.5 + 0.3 * 2**0.5]).repeat(32, 32)
    image = torch.stack([red, torch.full_like(red, 0.5), blue])[None]
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        network[0].running_mean.fill_(0.5)
        network[0].running_var.copy_(torch.tensor([0.09, 1e-4, 0.09]))
        network[1].weight.copy_(torch.tensor([[5.0, 0, 0], [-5, 0, 0]]).view(2, 3, 1, 1))
        network[1].bias.zero_()
    model = Segmenter(network, 2, head="1").eval()
    truth = next(convention for convention in CONVENTIONS if convention.name == "RGB, [0, 1] as it is")
    for declaration in (truth, truth._replace(channel_order="bgr", name="BGR, [0, 1] as it is")):
        use(model, declaration)
        ranked = rank_preprocessing(model, image)
        first, second = ranked[:2]
        assert (first.convention, second.convention.name) == (truth, "BGR, [0, 1] as it is")
        assert first.divergence == pytest.approx(second.divergence)
        assert clear_winner(model, ranked) == (None if declaration == truth else truth)
