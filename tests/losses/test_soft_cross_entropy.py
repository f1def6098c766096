import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from sfda.losses.cross_entropy import cross_entropy
from sfda.losses.soft_cross_entropy import one_hot, soft_cross_entropy


def random_batch(seed, classes=4, height=3, width=5, scale=3.0, dtype=torch.float64):
    """Logits, targets, weights and real pixels."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return scale * torch.randn(2, classes, height, width, generator=generator, dtype=torch.float64)

    logits, targets = draw(), draw().softmax(1)
    weight, valid = torch.rand(2, 2, height, width, generator=generator, dtype=torch.float64)
    return logits.to(dtype), targets.to(dtype), weight.to(dtype), valid > 0.3


def loop(logits, targets, weight, valid):
    """−w Σ_c y_c log p_c, averaged over the real pixels, one pixel after the other."""
    z, y, w = (tensor.double().numpy() for tensor in (logits, targets, weight))
    terms = []
    for b, i, j in np.argwhere(valid.numpy()):
        log_p = log_softmax(z[b, :, i, j])  # the logarithm of a softmax would be that of 0 for a class far below
        terms.append(-w[b, i, j] * sum(y[b, c, i, j] * log_p[c] for c in range(len(log_p))))
    return np.mean(terms) if terms else 0.0


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 150),
    size=st.sampled_from([(1, 1), (3, 5)]),
    scale=st.sampled_from([0.1, 3.0, 100.0]),
)
def test_value_against_loops(seed, classes, size, scale):
    batch = random_batch(seed, classes, *size, scale=scale)
    assert soft_cross_entropy(*batch).item() == pytest.approx(loop(*batch), rel=1e-9, abs=1e-9)


def test_without_weight_and_padding_every_pixel_counts_one():
    logits, targets, *_ = random_batch(0)
    everywhere = torch.ones(2, 3, 5)
    expected = loop(logits, targets, everywhere, everywhere > 0)
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(expected)


def test_one_hot_targets_give_the_cross_entropy_of_labels():
    logits, *_ = random_batch(1)
    labels = torch.randint(0, 4, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    labels[0, 1] = 255
    soft = soft_cross_entropy(logits, one_hot(labels, 4, torch.float64), valid=labels != 255)
    torch.testing.assert_close(soft, cross_entropy(logits, labels))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_one_hot_vectors(dtype):
    labels = torch.tensor([[[0, 2, 255]]], dtype=dtype)
    assert one_hot(labels, 3)[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_no_real_pixel_is_zero_with_a_gradient():
    logits, targets, weight, valid = random_batch(2)
    logits.requires_grad_()
    loss = soft_cross_entropy(logits, targets, weight, torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_padding_changes_nothing():
    logits, targets, weight, valid = random_batch(3)
    other = soft_cross_entropy(
        logits.where(valid[:, None], 7), targets.where(valid[:, None], 0), weight.where(valid, 9), valid
    )
    assert soft_cross_entropy(logits, targets, weight, valid) == other


def test_saturated_confidence():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1)
    right, wrong = (torch.tensor(y).view(1, 2, 1, 1) for y in ([1.0, 0.0], [0.0, 1.0]))
    assert soft_cross_entropy(logits, right).item() == pytest.approx(0, abs=1e-4)
    assert soft_cross_entropy(logits, wrong).item() == pytest.approx(400)


def test_first_and_second_derivatives_against_finite_differences():
    logits, targets, weight, valid = random_batch(4)
    inputs = (logits.requires_grad_(), targets.log().requires_grad_())

    def loss(z, log_y):
        return soft_cross_entropy(z, log_y.softmax(1), weight, valid)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_half_precision_is_raised():
    logits, targets, weight, valid = random_batch(5, dtype=torch.float32)
    loss = soft_cross_entropy(logits.bfloat16(), targets, weight, valid)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop(logits.bfloat16(), targets, weight, valid), rel=1e-5)
