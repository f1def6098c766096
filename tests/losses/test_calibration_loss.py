import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.losses.calibration import classwise_ece, image_ece, soft_confidence


def random_batch(seed, batch=2, classes=4, height=6, width=7, ignored=0.2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, height, width, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (batch, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return (2 * logits).softmax(1), labels


def loop_image_ece(p, y, bins, absent="skip"):
    """Class-averaged ECE of one image, p (C, H, W), y (H, W), by loops over classes and bins."""
    confidence, predicted = p.max(0), p.argmax(0)
    errors = []
    for c in range(len(p)):
        of_class = y == c
        if not of_class.any():
            if absent == "zero":
                errors.append(0.0)
            continue
        error = 0.0
        for m in range(bins):
            above = confidence > m / bins if m else True
            inside = of_class & above & ((confidence <= (m + 1) / bins) if m < bins - 1 else True)
            if inside.any():
                gap = (predicted[inside] == c).mean() - confidence[inside].mean()
                error += inside.sum() / of_class.sum() * abs(gap)
        errors.append(error)
    return np.mean(errors) if (y != 255).any() else None


def loop_ece(p, y, bins, absent="skip"):
    errors = [loop_image_ece(image, label, bins, absent) for image, label in zip(p.numpy(), y.numpy(), strict=True)]
    errors = [error for error in errors if error is not None]
    return np.mean(errors) if errors else 0.0


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 40),
    bins=st.sampled_from([1, 10, 15]),
    ignored=st.sampled_from([0.0, 0.3, 0.95]),
    absent=st.sampled_from(["skip", "zero"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=30)
def test_value_against_loops(seed, classes, bins, ignored, absent, dtype):
    p, labels = random_batch(seed, classes=classes, ignored=ignored, dtype=dtype)
    value = classwise_ece(p, labels, bins=bins, absent=absent)
    assert value.dtype == dtype
    assert value.item() == pytest.approx(loop_ece(p, labels, bins, absent), abs=1e-6)


@given(st.lists(st.integers(0, 20), min_size=4, max_size=4), st.integers(0, 1))
@settings(deadline=None, max_examples=30)
def test_confidences_on_bin_edges_and_at_one(twentieths, label):
    """Probabilities k/20: half of the confidences lie exactly on one of the edges of 10 bins."""
    first = np.array(twentieths, dtype=np.float64) / 20
    p = torch.from_numpy(np.stack([first, 1 - first]).reshape(1, 2, 2, 2))
    labels = torch.full((1, 2, 2), label)
    assert classwise_ece(p, labels).item() == pytest.approx(loop_ece(p, labels, 10), abs=1e-4)
    assert classwise_ece(p, labels, temperature=1e-9).item() == pytest.approx(loop_ece(p, labels, 10), abs=1e-8)


def test_extreme_confidences():
    p = torch.zeros(1, 3, 1, 3)
    p[0, 0, 0, 0] = p[0, 1, 0, 1] = 1  # sure and right, sure and wrong; the third pixel has confidence 0
    labels = torch.tensor([[[0, 2, 1]]])
    assert image_ece(p, labels).tolist() == pytest.approx([(0 + 1 + 0) / 3], abs=2e-5)


def test_one_pixel():
    p = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1)
    assert classwise_ece(p, torch.tensor([[[0]]])).item() == pytest.approx(0.3, abs=1e-6)
    assert classwise_ece(p, torch.tensor([[[1]]])).item() == pytest.approx(0.7, abs=1e-6)
    assert classwise_ece(p, torch.tensor([[[1]]]), absent="zero").item() == pytest.approx(0.35, abs=1e-6)


def test_images_without_a_labelled_pixel_are_left_out():
    p, labels = random_batch(0, batch=3)
    labels[1] = 255
    errors = image_ece(p, labels)
    assert errors[1] == 0
    assert errors[0].item() == pytest.approx(loop_image_ece(p[0].numpy(), labels[0].numpy(), 10), abs=1e-6)
    assert classwise_ece(p, labels).item() == pytest.approx(((errors[0] + errors[2]) / 2).item(), abs=1e-12)


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_all_ignored_is_zero_with_a_gradient(absent):
    p, labels = random_batch(1)
    p.requires_grad_()
    value = classwise_ece(p, torch.full_like(labels, 255), absent=absent)
    value.backward()
    assert value == 0
    assert torch.equal(p.grad, torch.zeros_like(p))


def test_ignored_pixels_change_nothing_and_have_no_gradient():
    p, labels = random_batch(2, ignored=0.4)
    ignored = (labels == 255)[:, None]
    changed = torch.where(ignored, torch.rand_like(p), p).requires_grad_()
    p.requires_grad_()
    value, same = classwise_ece(p, labels), classwise_ece(changed, labels)
    value.backward()
    same.backward()
    assert value.item() == same.item()
    assert torch.equal(p.grad, changed.grad)
    assert (p.grad * ignored == 0).all()
    assert p.grad.abs().sum() > 0
    unknown = torch.where(ignored, torch.nan, p.detach())
    assert classwise_ece(unknown, labels).item() == value.item()


@pytest.mark.parametrize("absent", ["skip", "zero"])
@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_gradient_against_finite_differences(temperature, absent):
    p, labels = random_batch(3, height=3, width=4)
    top = p.topk(2, dim=1).values
    near_a_jump = ((top[:, 0] * 10 - (top[:, 0] * 10).round()).abs() < 0.01) | (top[:, 0] - top[:, 1] < 0.01)
    labels[near_a_jump] = 255
    p.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: classwise_ece(q, labels, 10, temperature, absent), (p,), eps=1e-7)


def test_accuracy_carries_no_gradient_and_the_top_class_takes_it_all():
    p = torch.tensor([0.62, 0.28, 0.10], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    classwise_ece(p, torch.tensor([[[0]]])).backward()  # 1 − 0.62: more confidence, less error
    torch.testing.assert_close(p.grad.flatten(), torch.tensor([-1.0, 0, 0], dtype=torch.float64))
    p.grad = None
    classwise_ece(p, torch.tensor([[[1]]])).backward()  # 0.62 − 0: more confidence, more error
    torch.testing.assert_close(p.grad.flatten(), torch.tensor([1.0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 1e-2, 1e-1])
def test_soft_confidence_against_logsumexp_in_float64(temperature):
    p, _ = random_batch(4, classes=19)
    p.requires_grad_()
    reference = p.detach().clone().requires_grad_()
    soft, expected = soft_confidence(p, temperature), temperature * torch.logsumexp(reference / temperature, 1)
    torch.testing.assert_close(soft, expected, rtol=0, atol=1e-12)
    weights = torch.randn(soft.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (soft * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(p.grad, reference.grad, rtol=1e-6, atol=1e-9)
    excess = soft - p.amax(1)
    assert (excess >= 0).all()
    assert (excess <= temperature * np.log(19) + 1e-12).all()


def test_a_tie_shares_the_gradient():
    p = torch.tensor([0.4, 0.4, 0.2]).view(1, 3, 1, 1).requires_grad_()
    soft_confidence(p).sum().backward()
    assert p.grad.flatten().tolist() == pytest.approx([0.5, 0.5, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    p, labels = random_batch(5, dtype=torch.float32)
    p = p.to(dtype).requires_grad_()
    value = classwise_ece(p, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loop_ece(p.detach().float(), labels, 10), abs=1e-6)
    assert p.grad.dtype == dtype
    assert p.grad.isfinite().all()


def test_uint8_labels_make_no_difference():
    p, labels = random_batch(6)
    assert classwise_ece(p, labels) == classwise_ece(p, labels.to(torch.uint8))


def test_minimising_it_calibrates():
    """Right in 60 % of the pixels and at first 88 % sure: the loss brings the confidence to 60 %."""
    wrong = (torch.arange(100) % 10 >= 6).view(1, 1, 10, 10)
    scale = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.SGD([scale], lr=0.5)
    for _ in range(200):
        p = torch.stack([scale, -scale]).softmax(0).view(1, 2, 1, 1).expand(1, 2, 10, 10)
        p = torch.where(wrong, p.flip(1), p)
        loss = classwise_ece(p, torch.zeros(1, 10, 10, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.sigmoid(2 * scale).item() == pytest.approx(0.6, abs=0.05)
