import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.losses.class_balanced_cross_entropy import (
    RARE_SHARE,
    class_balanced_cross_entropy,
    class_pixels,
    class_weights,
    update_absence,
)
from sfda.losses.mean import mean_over_pixels


def random_batch(seed, classes=4, unlabelled=0.2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 3, 5, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (2, 3, 5), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < unlabelled] = 255
    weights = 1 + 6 * torch.rand(classes, generator=generator, dtype=dtype)
    valid = torch.rand(labels.shape, generator=generator) < 0.7
    return logits, labels, weights, valid


def loop_map(logits, labels, weights):
    """w_y · −log softmax(z)_y, a pixel at a time; 0 where unlabelled."""
    out = np.zeros(labels.shape)
    for b, y, x in np.ndindex(labels.shape):
        if labels[b, y, x] != 255:
            z = logits[b, :, y, x] - logits[b, :, y, x].max()
            c = labels[b, y, x]
            out[b, y, x] = weights[c] * (np.log(np.exp(z).sum()) - z[c])
    return out


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 150),
    unlabelled=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(deadline=None, max_examples=30)
def test_value_against_a_loop(seed, classes, unlabelled):
    """Weights are not divided out, and an unlabelled pixel counts 0 in a mean over all real ones."""
    logits, labels, weights, valid = random_batch(seed, classes, unlabelled)
    got = class_balanced_cross_entropy(logits, labels, weights)
    expected = loop_map(logits.numpy(), labels.numpy(), weights.numpy())
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)
    mean = np.mean([e for e, real in zip(expected.flatten(), valid.numpy().flatten(), strict=True) if real] or [0])
    assert mean_over_pixels(got, valid).item() == pytest.approx(mean, abs=1e-9)


def test_gradient_against_finite_differences():
    logits, labels, weights, valid = random_batch(1)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: mean_over_pixels(class_balanced_cross_entropy(z, labels, weights), valid), (logits,)
    )


def test_nothing_real_is_zero_with_a_gradient():
    logits, labels, weights, valid = random_batch(2)
    logits.requires_grad_()
    for ids, real in ((labels, torch.zeros_like(valid)), (torch.full_like(labels, 255), valid)):
        loss = mean_over_pixels(class_balanced_cross_entropy(logits, ids, weights), real)
        loss.backward()
        assert loss == 0
        assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    logits, labels, weights, _ = random_batch(3, dtype=torch.float32)
    got = class_balanced_cross_entropy(logits.to(dtype), labels, weights)
    assert got.dtype == torch.float32
    expected = loop_map(logits.to(dtype).float().numpy(), labels.numpy(), weights.numpy())
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_pixels_of_every_class():
    _, labels, _, _ = random_batch(4, classes=7)
    pixels = class_pixels(labels, 9)
    assert pixels.tolist() == [(labels.numpy() == c).sum() for c in range(9)]
    assert class_pixels(torch.full_like(labels, 255), 3).tolist() == [0, 0, 0]


def test_rare_at_the_published_crop_is_fewer_than_64_times_64_an_image():
    batch, area = 6, 256 * 512
    assert RARE_SHARE * area == 64 * 64
    pixels = torch.tensor([64 * 64 * batch - 1, 64 * 64 * batch, 0, 10**6], dtype=torch.float64)
    weights = class_weights(pixels, batch * area, torch.tensor([1.0, 1.0, 2.0, 1.5]))
    assert weights.tolist() == [7, 1, 14, 1.5]
    quarter = class_weights(pixels / 4, batch * area // 4, torch.ones(4), weight=3.0)
    assert quarter.tolist() == [3, 1, 3, 1]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=30), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_absence_is_a_moving_average_from_one(there, momentum):
    absence, expected = torch.ones(3, dtype=torch.float64), [1.0, 1.0, 1.0]
    for batch in there:
        absence = update_absence(absence, torch.tensor([5.0 * present for present in batch]), 7.0, momentum)
        for c, present in enumerate(batch):
            expected[c] = momentum * expected[c] + (1 - momentum) * (1.0 if present else 7.0)
    np.testing.assert_allclose(absence.numpy(), expected, atol=1e-12)
    assert absence.min() >= 1 - 1e-12
    assert absence.max() <= 7 + 1e-12


def test_a_class_that_comes_back_has_grown():
    absence = torch.ones(2)
    for _ in range(3):
        absence = update_absence(absence, torch.tensor([4.0, 0.0]))
    assert absence.tolist() == pytest.approx([1, 7 - 6 * 0.9**3])
    weights = class_weights(torch.tensor([50.0, 1.0]), 100, absence)
    assert weights.tolist() == pytest.approx([1, 7 * absence[1].item()])
