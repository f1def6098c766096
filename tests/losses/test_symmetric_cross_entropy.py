import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.losses.symmetric_cross_entropy import symmetric_cross_entropy


def random_batch(seed, batch=2, classes=4, height=3, width=4, unlabelled=0.3, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, classes, height, width, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (batch, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < unlabelled] = 255
    weights = torch.rand(classes, generator=generator, dtype=dtype) + 0.05
    return logits, labels, weights


def loop_loss(logits, labels, weights=None, ce_weight=0.1, rce_weight=1.0, floor=1e-4):
    """Both terms pixel by pixel and class by class, as they are written in the paper."""
    weighted, total_weight, reverse, pixels = 0.0, 0.0, 0.0, 0
    for i, y, x in np.ndindex(*labels.shape):
        label = int(labels[i, y, x])
        if label == 255:
            continue
        z = logits[i, :, y, x].double().tolist()
        odds = [math.exp(value - max(z)) for value in z]
        p = [odd / sum(odds) for odd in odds]
        onehot = [1.0 if c == label else 0.0 for c in range(len(p))]
        weight = 1.0 if weights is None else float(weights[label])
        weighted += weight * (math.log(sum(odds)) + max(z) - z[label])
        total_weight += weight
        reverse += -sum(p[c] * math.log(max(onehot[c], floor)) for c in range(len(p)))
        pixels += 1
    if not pixels:
        return 0.0
    return ce_weight * weighted / total_weight + rce_weight * reverse / pixels


@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([2, 3, 19, 150]),
    weighted=st.booleans(),
    unlabelled=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    ce_weight=st.sampled_from([0.0, 0.1, 1.0]),
    rce_weight=st.sampled_from([0.0, 1.0]),
    floor=st.sampled_from([1e-4, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=60)
def test_value_against_loops(seed, classes, weighted, unlabelled, scale, ce_weight, rce_weight, floor, dtype):
    logits, labels, weights = random_batch(seed, classes=classes, unlabelled=unlabelled, scale=scale, dtype=dtype)
    weights = weights if weighted else None
    value = symmetric_cross_entropy(logits, labels, weights, ce_weight, rce_weight, floor)
    assert value.dtype == dtype
    expected = loop_loss(logits, labels, weights, ce_weight, rce_weight, floor)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    assert value.item() == pytest.approx(expected, rel=tolerance, abs=5 * tolerance)


def test_published_weights_and_floor_are_the_defaults():
    logits, labels, weights = random_batch(0)
    assert symmetric_cross_entropy(logits, labels, weights).item() == pytest.approx(loop_loss(logits, labels, weights))
    assert symmetric_cross_entropy(logits, labels).item() == pytest.approx(loop_loss(logits, labels))


def test_class_weights_act_as_in_a_weighted_cross_entropy():
    logits, labels, weights = random_batch(1)
    value = symmetric_cross_entropy(logits, labels, weights, ce_weight=1, rce_weight=0)
    expected = F.cross_entropy(logits, labels, weights, ignore_index=255)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)


def test_class_weights_leave_the_reverse_term_alone():
    logits, labels, weights = random_batch(2)
    weighted = symmetric_cross_entropy(logits, labels, weights, ce_weight=0)
    assert weighted.item() == symmetric_cross_entropy(logits, labels, ce_weight=0).item()


@pytest.mark.parametrize("weighted", [True, False])
def test_gradient_against_finite_differences(weighted):
    logits, labels, weights = random_batch(3)
    logits.requires_grad_()
    weights = weights if weighted else None
    assert torch.autograd.gradcheck(lambda z: symmetric_cross_entropy(z, labels, weights), (logits,), atol=1e-7)


@pytest.mark.parametrize("weighted", [True, False])
def test_no_label_is_zero_with_a_gradient(weighted):
    logits, labels, weights = random_batch(4, dtype=torch.float32)
    logits.requires_grad_()
    value = symmetric_cross_entropy(logits, torch.full_like(labels, 255), weights if weighted else None)
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_labels_of_a_class_without_weight_are_zero_in_the_first_term():
    logits, labels, _ = random_batch(5, classes=3, dtype=torch.float32)
    logits.requires_grad_()
    value = symmetric_cross_entropy(logits, torch.zeros_like(labels), torch.tensor([0.0, 1, 1]), rce_weight=0)
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_unlabelled_pixels_change_nothing_and_have_no_gradient():
    logits, labels, weights = random_batch(6)
    unlabelled = (labels == 255)[:, None]
    changed = torch.where(unlabelled, torch.rand_like(logits), logits).requires_grad_()
    logits.requires_grad_()
    value = symmetric_cross_entropy(logits, labels, weights)
    same = symmetric_cross_entropy(changed, labels, weights)
    value.backward()
    same.backward()
    assert value.item() == same.item()
    assert torch.equal(logits.grad, changed.grad)
    assert (logits.grad * unlabelled == 0).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("label", [0, 1])
def test_saturated_logits_are_finite(size, label):
    logits = torch.full((1, 3, 2, 2), -size)
    logits[0, 0] = size
    logits.requires_grad_()
    value = symmetric_cross_entropy(logits, torch.full((1, 2, 2), label))
    value.backward()
    expected = 0 if label == 0 else 0.1 * 2 * size - math.log(1e-4)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert logits.grad.isfinite().all()


def test_one_pixel_of_one_label():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().view(1, 3, 1, 1)
    value = symmetric_cross_entropy(logits, torch.tensor([[[1]]]))
    assert value.item() == pytest.approx(-0.1 * math.log(0.2) - 0.8 * math.log(1e-4), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    logits, labels, weights = random_batch(7, classes=19, dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    value = symmetric_cross_entropy(half, labels, weights)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loop_loss(half.detach(), labels, weights), rel=1e-5)
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()
    assert half.grad.abs().sum() > 0


def test_uint8_labels_make_no_difference():
    logits, labels, weights = random_batch(8)
    value = symmetric_cross_entropy(logits, labels, weights)
    assert value == symmetric_cross_entropy(logits, labels.to(torch.uint8), weights)
