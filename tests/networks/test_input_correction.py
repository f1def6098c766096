import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sfda.networks.batch_norm import BatchStatistics, read_statistics
from sfda.networks.input_correction import correct_input, fit_input_correction
from sfda.networks.segmenter import Segmenter
from tiny_network import build


def segmenter(images, seed=0):
    """The tiny network, with the statistics of images."""
    torch.manual_seed(seed)
    network = Segmenter(build(5), 5, head="classifier").eval()
    with torch.no_grad(), BatchStatistics(network) as gathered:
        network(images)
    for name, (mean, variance) in gathered.mean_and_variance().items():
        layer = network.get_submodule(name)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return network


def images(seed=1):
    coarse = torch.rand(4, 3, 8, 12, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (32, 48), mode="bicubic").clamp(0, 1)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.5, 2), min_size=3, max_size=3), st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3))
def test_colours_that_were_changed_are_brought_back(gain, offset):
    gain, offset = (torch.tensor(each).view(1, 3, 1, 1) for each in (gain, offset))
    network = segmenter(images())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found_gain, found_offset = fit_input_correction(network, list(gain * images() + offset), read_statistics(network))
    torch.testing.assert_close(found_gain, 1 / gain, atol=0.02, rtol=0.02)
    torch.testing.assert_close(found_offset, -offset / gain, atol=0.02, rtol=0.02)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_corrected_network_sees_corrected_images(share):
    network = segmenter(images())
    given_images = images(2)
    gain, offset = torch.tensor([1.5, 0.8, 1.1]).view(1, 3, 1, 1), torch.tensor([0.1, -0.2, 0.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = network((1 + share * (gain - 1)) * given_images + share * offset)
        correct_input(network, (network.mean.clone(), network.std.clone()), (gain, offset), share)
        torch.testing.assert_close(network(given_images), expected, atol=1e-4, rtol=1e-4)


def test_no_correction_changes_no_bit():
    network = segmenter(images())
    mean, std = network.mean.clone(), network.std.clone()
    correct_input(network, (mean, std), (torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1)), 0.0)
    assert torch.equal(network.mean, mean)
    assert torch.equal(network.std, std)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_of_one_colour_leave_a_network_that_predicts(value):
    network = segmenter(images())
    correction = fit_input_correction(network, [torch.full((3, 20, 30), value)] * 2, read_statistics(network))
    assert all(each.isfinite().all() for each in correction)
    correct_input(network, (network.mean.clone(), network.std.clone()), correction, 1.0)
    assert network(images()).isfinite().all()


def test_images_of_several_sizes_are_looked_at_together():
    network = segmenter(images())
    several = [images()[0], nn.functional.interpolate(images()[1:2], (64, 40))[0]]
    gain, _ = fit_input_correction(network, several, read_statistics(network))
    assert gain.isfinite().all()
