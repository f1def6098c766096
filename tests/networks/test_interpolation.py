import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfda.networks.interpolation import interpolate
from tiny_network import build

numbers = st.floats(-1e3, 1e3, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1), st.floats(0, 1))
def test_weights_lie_on_the_line_between_the_two(pairs, share):
    start, end = ({"w": torch.tensor(values)} for values in zip(*pairs, strict=True))
    expected = [a + share * (b - a) for a, b in pairs]
    np.testing.assert_allclose(interpolate(start, end, share)["w"].numpy(), expected, rtol=1e-5, atol=1e-3)


@given(st.lists(st.tuples(numbers, numbers), min_size=1))
def test_the_ends_are_exact(pairs):
    start, end = ({"w": torch.tensor(values)} for values in zip(*pairs, strict=True))
    assert torch.equal(interpolate(start, end, 0.0)["w"], start["w"])
    assert torch.equal(interpolate(start, end, 1.0)["w"], end["w"])


def test_of_a_network_counts_stay_and_nothing_is_changed_in_place():
    start, end = build(5), build(5)
    end(torch.rand(2, 3, 16, 16))  # moves BatchNorm's statistics and counts the batch
    before = {name: value.clone() for name, value in end.state_dict().items()}
    mixed = interpolate(start.state_dict(), end.state_dict(), 0.25)
    assert mixed["backbone.1.num_batches_tracked"] == 1
    for name in ("backbone.1.running_mean", "backbone.1.running_var", "classifier.weight"):
        expected = 0.75 * start.state_dict()[name] + 0.25 * before[name]
        torch.testing.assert_close(mixed[name], expected)
    mixed["backbone.1.num_batches_tracked"] += 1
    assert all(torch.equal(value, before[name]) for name, value in end.state_dict().items())


def test_what_is_infinite_in_both_stays():
    state = {"mask": torch.tensor([-math.inf, 0.0])}
    assert torch.equal(interpolate(state, state, 0.5)["mask"], state["mask"])
