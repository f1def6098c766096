import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.losses.negative_learning import complementary_rank, negative_learning


def random_batch(seed, batch=2, classes=4, height=3, width=4, padded=0.3, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, classes, height, width, generator=generator, dtype=dtype)
    return logits, torch.rand(batch, height, width, generator=generator) >= padded


def loop_negative_learning(logits, rank, valid):
    """Every real pixel on its own: sort its probabilities, take the `rank`-th."""
    batch, _, height, width = logits.shape
    each = []
    for i, y, x in np.ndindex(batch, height, width):
        if valid[i, y, x]:
            z = logits[i, :, y, x].double().tolist()
            odds = [math.exp(value - max(z)) for value in z]
            k = sorted(range(len(z)), key=lambda c, z=z: -z[c])[rank - 1]
            rest = sum(odd for c, odd in enumerate(odds) if c != k) / sum(odds)
            each.append(-math.log(max(rest, 1e-5)))
    return sum(each) / len(each) if each else 0.0


@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([2, 3, 19, 150]),
    where=st.floats(0, 1),
    padded=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=50)
def test_value_against_loops(seed, classes, where, padded, scale, dtype):
    rank = 1 + round(where * (classes - 1))
    logits, valid = random_batch(seed, classes=classes, padded=padded, scale=scale, dtype=dtype)
    value = negative_learning(logits, rank, valid)
    assert value.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5 if rank > 1 else 1e-2  # 1 − p is rounded where p is nearly 1
    assert value.item() == pytest.approx(loop_negative_learning(logits, rank, valid), rel=tolerance, abs=tolerance / 10)


@pytest.mark.parametrize(("rank", "complement"), [(1, 0.4), (2, 0.7), (3, 0.9)])
def test_rank_one_is_the_most_probable(rank, complement):
    logits = torch.tensor([0.1, 0.6, 0.3]).log().view(1, 3, 1, 1)
    value = negative_learning(logits, rank, torch.ones(1, 1, 1, dtype=torch.bool))
    assert value.item() == pytest.approx(-math.log(complement), abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_gradient_against_finite_differences(rank):
    logits, valid = random_batch(1, classes=5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: negative_learning(z, rank, valid), (logits,), atol=1e-7)


def test_a_step_along_it_makes_the_complementary_class_less_probable():
    logits, _ = random_batch(2, classes=6, padded=0)
    logits.requires_grad_()
    negative_learning(logits, 3, torch.ones(2, 3, 4, dtype=torch.bool)).backward()
    third = logits.detach().argsort(1, descending=True)[:, 2:3]
    moved = (logits.detach() - logits.grad).softmax(1)
    assert (moved.gather(1, third) < logits.detach().softmax(1).gather(1, third)).all()


def test_no_valid_pixel_is_zero_with_a_gradient():
    logits, valid = random_batch(3, dtype=torch.float32)
    logits.requires_grad_()
    value = negative_learning(logits, 2, torch.zeros_like(valid))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_padding_changes_nothing_and_has_no_gradient():
    logits, valid = random_batch(4)
    changed = torch.where(valid[:, None], logits, torch.rand_like(logits)).requires_grad_()
    logits.requires_grad_()
    value, same = negative_learning(logits, 2, valid), negative_learning(changed, 2, valid)
    value.backward()
    same.backward()
    assert value.item() == same.item()
    assert torch.equal(logits.grad, changed.grad)
    assert (logits.grad * ~valid[:, None] == 0).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_saturated_logits_are_finite(size, rank):
    logits = torch.full((1, 3, 2, 2), -size)
    logits[0, 0] = size
    logits[0, 1, 0, 0] = size  # a tie
    logits.requires_grad_()
    value = negative_learning(logits, rank, torch.ones(1, 2, 2, dtype=torch.bool))
    value.backward()
    expected = {1: (math.log(2) - 3 * math.log(1e-5)) / 4, 2: math.log(2) / 4, 3: 0}
    assert value.item() == pytest.approx(expected[rank], rel=1e-3)
    assert logits.grad.isfinite().all()


def test_small_probabilities_keep_their_value():
    """1 − p rounds to 1 in float32 for p below 6e-8; −log(1 − p), and its slope in z, are still about p."""
    logits = torch.tensor([0.0, -20.0, -30.0]).view(1, 3, 1, 1).requires_grad_()
    value = negative_learning(logits, 2, torch.ones(1, 1, 1, dtype=torch.bool))
    value.backward()
    assert value.item() == pytest.approx(math.exp(-20), rel=1e-4, abs=0)
    assert logits.grad[0, 1].item() == pytest.approx(math.exp(-20), rel=1e-4, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    logits, valid = random_batch(5, classes=19, dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    value = negative_learning(half, 4, valid)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loop_negative_learning(half.detach(), 4, valid), abs=1e-6)
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()
    assert half.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("classes", "ranks"),
    [
        (2, {2}),
        (3, {2, 3}),
        (4, {2, 3, 4}),
        (6, set(range(2, 7))),
        (13, set(range(3, 10))),
        (19, set(range(6, 13))),
        (150, set(range(72, 79))),
    ],
)
def test_ranks_that_are_drawn(classes, ranks):
    generator = np.random.default_rng(0)
    drawn = [complementary_rank(classes, generator) for _ in range(300)]
    assert set(drawn) == ranks
    assert all(type(rank) is int for rank in drawn)


def test_draws_are_uniform_and_repeatable():
    drawn = [complementary_rank(19, np.random.default_rng(seed)) for seed in range(1400)]
    counts = np.bincount(drawn, minlength=13)[6:]
    assert (abs(counts - 200) < 60).all()
    assert drawn[7] == complementary_rank(19, np.random.default_rng(7))
