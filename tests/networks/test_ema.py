import copy

import pytest
import torch
from torch import nn

from sfda.networks.ema import update_average


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).double()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.9999, 1.0])
def test_closed_form(momentum):
    """After n updates towards one network: momentum^n of the start is left."""
    start, current = network(0), network(1)
    average = copy.deepcopy(start)
    for _ in range(7):
        update_average(average, current, momentum)
    left = momentum**7
    for got, old, new in zip(average.parameters(), start.parameters(), current.parameters(), strict=True):
        torch.testing.assert_close(got, left * old + (1 - left) * new, rtol=0, atol=1e-12)


def test_towards_a_network_that_moves():
    """average_n = m^n · a₀ + (1 − m) Σ m^(n−i) · w_i, whatever w_i was at each update."""
    average, start, momentum = network(0), network(0), 0.9
    visited = [network(seed) for seed in range(1, 6)]
    for current in visited:
        update_average(average, current, momentum)
    expected = momentum**5 * start[0].weight
    for i, current in enumerate(visited):
        expected = expected + (1 - momentum) * momentum ** (4 - i) * current[0].weight
    torch.testing.assert_close(average[0].weight, expected, rtol=0, atol=1e-12)


def test_buffers_are_copied_and_the_current_network_stays():
    average, current = network(0), network(1)
    current(torch.randn(8, 3, 5, 5, dtype=torch.float64))  # moves the running statistics
    before = copy.deepcopy(current.state_dict())
    update_average(average, current, 0.9)
    assert torch.equal(average[1].running_mean, current[1].running_mean)
    assert torch.equal(average[1].running_var, current[1].running_var)
    assert average[1].num_batches_tracked == 1
    assert all(torch.equal(value, before[key]) for key, value in current.state_dict().items())
    current[1].running_mean.add_(1)
    assert not torch.equal(average[1].running_mean, current[1].running_mean)  # copied, not shared


def test_no_graph_and_no_gradient():
    average, current = network(0).requires_grad_(False), network(1)
    update_average(average, current, 0.9)
    assert all(p.grad_fn is None and not p.requires_grad for p in average.parameters())
    assert all(p.grad is None and p.requires_grad for p in current.parameters())


def test_networks_of_other_structure_are_refused():
    with pytest.raises(ValueError, match="zip"):
        update_average(network(0), network(0)[:2], 0.9)
