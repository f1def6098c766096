import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfda.losses.entropy import (
    class_equalised_entropy,
    entropy,
    mean_entropy,
    mean_probability_entropy,
    normalised_entropy,
)
from sfda.ranks import ALL_RANKS

LOSSES = [mean_entropy, normalised_entropy, mean_probability_entropy, class_equalised_entropy]


def random_batch(seed, batch=2, classes=4, height=3, width=4, padded=0.3, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, classes, height, width, generator=generator, dtype=dtype)
    return logits, torch.rand(batch, height, width, generator=generator) >= padded


def loop_softmax(z):
    odds = [math.exp(value - max(z)) for value in z]
    return [odd / sum(odds) for odd in odds]


def loop_entropy(p):
    return -sum(q * math.log(q) for q in p if q > 0)


def valid_pixels(logits, valid):
    """The class probabilities of every real pixel."""
    batch, _, height, width = logits.shape
    for i, y, x in np.ndindex(batch, height, width):
        if valid[i, y, x]:
            yield loop_softmax(logits[i, :, y, x].double().tolist())


def loop_mean_entropy(logits, valid):
    each = [loop_entropy(p) for p in valid_pixels(logits, valid)]
    return sum(each) / len(each) if each else 0.0


def loop_normalised_entropy(logits, valid):
    each = [loop_entropy(p) for p in valid_pixels(logits, valid)]
    if not each or max(each) == 0:
        return 0.0
    return sum(((h / max(each)) ** 2 + 1e-8) ** 2 for h in each) / len(each)


def loop_mean_probability_entropy(logits, valid):
    each = list(valid_pixels(logits, valid))
    return loop_entropy([sum(p) / len(each) for p in zip(*each, strict=True)]) if each else 0.0


def loop_class_equalised_entropy(logits, valid):
    of_class = {}
    predicted = logits.argmax(1)[valid].tolist()
    for label, p in zip(predicted, valid_pixels(logits, valid), strict=True):
        of_class.setdefault(label, []).append(loop_entropy(p))
    return sum(sum(each) / len(each) for each in of_class.values()) / max(1, len(of_class))


LOOPS = {
    mean_entropy: loop_mean_entropy,
    normalised_entropy: loop_normalised_entropy,
    mean_probability_entropy: loop_mean_probability_entropy,
    class_equalised_entropy: loop_class_equalised_entropy,
}


@pytest.mark.parametrize("loss", LOSSES)
@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([2, 3, 19, 150]),
    padded=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(seed=10_000, classes=2, padded=0.0, scale=30.0, dtype=torch.float32)
@settings(deadline=None, max_examples=25)
def test_value_against_loops(loss, seed, classes, padded, scale, dtype):
    logits, valid = random_batch(seed, classes=classes, padded=padded, scale=scale, dtype=dtype)
    value = loss(logits, valid)
    assert value.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    if loss is normalised_entropy:  # an entropy is as exact as the 1 beside it, and the largest may be tiny
        largest = max(map(loop_entropy, valid_pixels(logits, valid)), default=0)
        tolerance += 8 * torch.finfo(dtype).eps / max(largest, 1e-30)
    assert value.item() == pytest.approx(LOOPS[loss](logits, valid), abs=tolerance)


def test_entropy_of_known_predictions():
    p = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.25, 0.25]], dtype=torch.float64)
    values = entropy(p.log())  # the logarithm of 0 is −inf
    expected = [math.log(2), 0, math.log(3), 1.5 * math.log(2)]
    assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_shape_with_and_without_pixels():
    assert entropy(torch.randn(2, 5, 3, 4)).shape == (2, 3, 4)
    assert entropy(torch.randn(7, 5)).shape == (7,)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_against_finite_differences(loss):
    logits, valid = random_batch(1)
    logits.requires_grad_()
    if loss is normalised_entropy:  # the largest entropy is a constant of the batch: keep it so for the differences
        pixels = entropy(logits.detach())
        flat = torch.where(valid, pixels, 0).argmax()
        fixed = torch.zeros(valid.numel(), dtype=torch.bool).scatter_(0, flat, True).view(valid.shape)
        frozen = logits.detach().clone()
        assert torch.autograd.gradcheck(
            lambda z: loss(torch.where(fixed[:, None], frozen, z), valid), (logits,), atol=1e-7
        )
    else:
        assert torch.autograd.gradcheck(lambda z: loss(z, valid), (logits,), atol=1e-7)


def test_gradient_of_entropy_against_finite_differences():
    logits, _ = random_batch(2, classes=5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(entropy, (logits,), atol=1e-7)


def test_the_largest_entropy_carries_no_gradient():
    """One pixel is its own largest: h stays 1, but its entropy is still pushed down."""
    logits = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    value = normalised_entropy(logits, torch.ones(1, 1, 1, dtype=torch.bool))
    value.backward()
    assert value.item() == pytest.approx((1 + 1e-8) ** 2)
    p = loop_softmax([1.0, 0.5, 0.0])
    h = loop_entropy(p)
    expected = [-4 * (1 + 1e-8) / h * q * (math.log(q) + h) for q in p]
    assert logits.grad.flatten().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_valid_pixel_is_zero_with_a_gradient(loss):
    logits, valid = random_batch(3, dtype=torch.float32)
    logits.requires_grad_()
    value = loss(logits, torch.zeros_like(valid))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_changes_nothing_and_has_no_gradient(loss):
    logits, valid = random_batch(4)
    changed = torch.where(valid[:, None], logits, 0.01 * torch.rand_like(logits)).requires_grad_()
    logits.requires_grad_()
    value, same = loss(logits, valid), loss(changed, valid)
    value.backward()
    same.backward()
    assert value.item() == same.item()
    assert torch.equal(logits.grad, changed.grad)
    assert (logits.grad * ~valid[:, None] == 0).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [90.0, 1e4, 1e30, 3e38])
def test_saturated_logits_are_finite(loss, size):
    logits = torch.full((1, 3, 2, 2), -size)
    logits[0, 0] = size  # the other classes have probability 0 everywhere
    logits[0, 1, 0, 0] = size  # a tie
    logits.requires_grad_()
    value = loss(logits, torch.ones(1, 2, 2, dtype=torch.bool))
    value.backward()
    exact = {
        mean_entropy: math.log(2) / 4,
        normalised_entropy: 0.25,
        mean_probability_entropy: loop_entropy([0.875, 0.125]),
        class_equalised_entropy: math.log(2) / 4,
    }
    assert value.item() == pytest.approx(exact[loss], abs=1e-6)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_entropy_at_all_is_zero_with_a_gradient(loss, dtype):
    logits = torch.full((1, 3, 2, 2), -1e4, dtype=dtype)
    logits[0, 1] = 1e4
    logits.requires_grad_()
    value = loss(logits, torch.ones(1, 2, 2, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("gap", [20.0, 30.0, 90.0, 1e4])
def test_uncertain_padding_beside_sure_pixels_has_no_gradient(gap):
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, 0, 0, 0] = gap
    logits.requires_grad_()
    value = normalised_entropy(logits, torch.tensor([[[True, False]]]))
    value.backward()
    assert value.item() == pytest.approx(float(gap < 70), abs=1e-6)  # below 1e-30 nats there is nothing to share
    assert logits.grad.isfinite().all()
    assert (logits.grad[..., 1] == 0).all()


@pytest.mark.parametrize("gap", [80.0, 86.0, 90.0, 95.0, 100.0, 103.0])
def test_next_to_no_entropy_at_all_has_a_finite_gradient(gap):
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, 0] = gap
    logits.requires_grad_()
    value = normalised_entropy(logits, torch.ones(1, 1, 2, dtype=torch.bool))
    value.backward()
    assert 0 <= value.item() <= 1.000001
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("infinite", [[math.inf, 0, -1], [-math.inf, 0, 0], [-math.inf] * 3, [math.inf, -math.inf, 0]])
def test_infinite_logits(infinite):
    logits = torch.tensor(infinite).view(1, 3, 1, 1).requires_grad_()
    value = entropy(logits)
    value.sum().backward()
    top = max(infinite)
    assert value.item() == pytest.approx(math.log(sum(z == top for z in infinite)), abs=1e-6)
    assert logits.grad.isfinite().all()


def test_nan_is_not_hidden():
    assert entropy(torch.tensor([[math.nan, 0.0, 1.0]])).isnan().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(loss, dtype):
    logits, valid = random_batch(5, classes=19, dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    value = loss(half, valid)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(LOOPS[loss](half.detach(), valid), abs=1e-5)
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()
    assert half.grad.abs().sum() > 0


def test_a_shift_of_the_logits_changes_nothing():
    """log-softmax is shifted by the maximum: large logits lose no precision."""
    logits, _ = random_batch(6, dtype=torch.float32)
    logits = (logits * 64).round() / 64  # so that the sum below is exact
    torch.testing.assert_close(entropy(logits + 4096), entropy(logits), rtol=0, atol=1e-6)


def test_information_maximisation_is_largest_for_sure_and_varied_predictions():
    sure = 50 * torch.eye(4).view(1, 4, 2, 2)
    same = torch.zeros(1, 4, 2, 2)
    same[:, 0] = 50
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    assert (mean_probability_entropy(sure, valid) - mean_entropy(sure, valid)).item() == pytest.approx(math.log(4))
    assert mean_probability_entropy(same, valid).item() == pytest.approx(0, abs=1e-6)


def test_class_equalised_entropy_of_two_ranks_is_that_of_one(on_two_ranks):
    logits, valid = random_batch(5, batch=4)

    def of_rank(rank):
        own = logits[2 * rank : 2 * rank + 2].clone().requires_grad_()
        value = class_equalised_entropy(own, valid[2 * rank : 2 * rank + 2], ALL_RANKS)
        value.backward()
        return {"value": value.detach(), "gradient": own.grad}

    both = on_two_ranks(of_rank)
    logits.requires_grad_()
    value = class_equalised_entropy(logits, valid)
    value.backward()
    torch.testing.assert_close(torch.stack([each["value"] for each in both]).mean(), value.detach())
    # DDP averages the gradients of the ranks
    torch.testing.assert_close(torch.cat([each["gradient"] for each in both]) / 2, logits.grad)
