import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.losses.prototype_contrast import (
    cosine_similarities,
    feature_sums,
    mask_absent,
    nearest_prototype,
    prototype_symmetric_cross_entropy,
    resize_nearest,
    update_prototypes,
)


def random_batch(seed, classes=4, present=3, dim=6, ignored=0.2):
    """Features (2, D, 3, 5) of two networks and labels of which only some classes occur."""
    generator = torch.Generator().manual_seed(seed)
    memory, features = torch.randn(2, 2, dim, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, min(classes, present), (2, 3, 5), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return memory, features, labels


def loop_prototypes(memory, labels, classes):
    """Per image and class: the mean of the features labelled so, at length 1; None for an absent class."""
    prototypes = []
    for image, label in zip(memory, labels, strict=True):
        row = []
        for c in range(classes):
            found = [image[:, y, x] for y, x in np.ndindex(label.shape) if label[y, x] == c]
            mean = np.mean(found, axis=0) if found else None
            row.append(None if mean is None else mean / np.linalg.norm(mean))
        prototypes.append(row)
    return prototypes


def loop_cosine(feature, prototype):
    return float(feature @ prototype / np.linalg.norm(feature))


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 150), ignored=st.sampled_from([0.0, 0.5, 0.97, 1.0]))
@settings(deadline=None, max_examples=25)
def test_similarities_and_labels_against_loops(seed, classes, ignored):
    memory, features, labels = random_batch(seed, classes, 5, ignored=ignored)
    sums, counts = feature_sums(memory, labels, classes)
    similarities = cosine_similarities(features, sums)
    nearest = nearest_prototype(similarities, counts > 0)
    prototypes = loop_prototypes(memory.numpy(), labels.numpy(), classes)
    for b, y, x in np.ndindex(labels.shape):
        feature = features[b, :, y, x].numpy()
        cosines = {c: loop_cosine(feature, q) for c, q in enumerate(prototypes[b]) if q is not None}
        for c in range(classes):
            assert (counts[b, c] > 0) == (c in cosines)
            assert similarities[b, c, y, x].item() == pytest.approx(cosines.get(c, 0.0), abs=1e-9)
        assert nearest[b, y, x] == (max(cosines, key=cosines.get) if cosines else 255)


def test_an_absent_class_never_wins():
    """The only present class has cosine −1 everywhere."""
    features = torch.randn(1, 3, 1, 1).expand(1, 3, 2, 2)
    sums = torch.stack([torch.zeros(3), -features[0, :, 0, 0], torch.zeros(3)])[None]
    similarities = cosine_similarities(features, sums)
    present = torch.tensor([[False, True, False]])
    assert nearest_prototype(similarities, present).tolist() == [[[1, 1], [1, 1]]]
    probabilities = mask_absent(similarities, present).softmax(1)
    assert torch.equal(probabilities[0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    assert mask_absent(similarities, torch.zeros_like(present)).softmax(1).isfinite().all()


def loop_symmetric(logits, prototype_labels, similarities, present, valid):
    """Both terms, a pixel at a time; an absent prediction is left out of the second."""
    first, second = [], []
    for b, y, x in np.ndindex(valid.shape):
        if not valid[b, y, x]:
            continue
        z = logits[b, :, y, x]
        if prototype_labels[b, y, x] != 255:
            first.append(np.log(np.exp(z).sum()) - z[prototype_labels[b, y, x]])
        predicted = int(z.argmax())
        there = [c for c in range(len(z)) if present[b, c]]
        if predicted in there:
            total = sum(np.exp(similarities[b, c, y, x]) for c in there)
            second.append(-np.log(np.exp(similarities[b, predicted, y, x]) / total))
    return (np.mean(first) if first else 0.0) + (np.mean(second) if second else 0.0)


def symmetric_inputs(seed, classes=4, share=0.6):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 3, 5, generator=generator, dtype=torch.float64)
    similarities = 2 * torch.rand(2, classes, 3, 5, generator=generator, dtype=torch.float64) - 1
    present = torch.rand(2, classes, generator=generator) < share
    labels = nearest_prototype(similarities, present)
    valid = torch.rand(labels.shape, generator=generator) < 0.7
    return logits, labels, similarities, present, valid


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 150), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(deadline=None, max_examples=30)
def test_symmetric_cross_entropy_against_loops(seed, classes, share):
    inputs = symmetric_inputs(seed, classes, share)
    got = prototype_symmetric_cross_entropy(*inputs)
    assert got.item() == pytest.approx(loop_symmetric(*(tensor.numpy() for tensor in inputs)), abs=1e-9)


def test_gradients_against_finite_differences():
    logits, labels, similarities, present, valid = symmetric_inputs(3)
    logits.requires_grad_()
    similarities.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, s: prototype_symmetric_cross_entropy(z, labels, s, present, valid), (logits, similarities)
    )
    memory, features, ids = random_batch(4)
    features.requires_grad_()
    sums, _ = feature_sums(memory, ids, 4)
    assert torch.autograd.gradcheck(lambda f: cosine_similarities(f, sums), (features,))


@pytest.mark.parametrize("nothing", ["present", "valid"])
def test_nothing_to_learn_from_is_zero_with_a_gradient(nothing):
    logits, labels, similarities, present, valid = symmetric_inputs(5)
    if nothing == "present":
        present = torch.zeros_like(present)
        labels = nearest_prototype(similarities, present)
        assert (labels == 255).all()
    else:
        valid = torch.zeros_like(valid)
    logits.requires_grad_()
    similarities.requires_grad_()
    loss = prototype_symmetric_cross_entropy(logits, labels, similarities, present, valid)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert torch.equal(similarities.grad, torch.zeros_like(similarities))


def test_what_nobody_predicts_has_no_gradient():
    """Absent classes and padding take part in nothing."""
    logits, labels, similarities, present, valid = symmetric_inputs(6)
    logits.requires_grad_()
    similarities.requires_grad_()
    prototype_symmetric_cross_entropy(logits, labels, similarities, present, valid).backward()
    assert similarities.grad.isfinite().all()
    assert (similarities.grad[~present] == 0).all()
    padded = (~valid)[:, None].expand_as(logits)
    assert (logits.grad[padded] == 0).all()
    assert (similarities.grad[padded] == 0).all()
    assert similarities.grad.abs().sum() > 0


def test_a_feature_of_zeros_gives_no_nan():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    similarities = cosine_similarities(features, torch.randn(1, 3, 4))
    similarities.sum().backward()
    assert torch.equal(similarities, torch.zeros_like(similarities))
    assert features.grad.isfinite().all()


def test_the_memory_gets_no_gradient():
    memory, features, labels = random_batch(7)
    memory.requires_grad_()
    features.requires_grad_()
    sums, counts = feature_sums(memory, labels, 4)
    assert not sums.requires_grad
    assert not nearest_prototype(cosine_similarities(features, sums), counts > 0).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    """Under autocast too, which would take the products back to half precision."""
    memory, features, labels = (t.to(dtype) if t.is_floating_point() else t for t in random_batch(8, dim=64))
    with torch.autocast("cpu", torch.bfloat16):
        sums, counts = feature_sums(memory, labels, 4)
        similarities = cosine_similarities(features, sums)
        assert sums.dtype == similarities.dtype == torch.float32
        exact = cosine_similarities(features.double(), feature_sums(memory.double(), labels, 4)[0])
        torch.testing.assert_close(similarities.double(), exact, rtol=0, atol=1e-5)
        z = torch.randn(2, 4, 3, 5).to(dtype)
        valid = torch.ones(2, 3, 5, dtype=torch.bool)
        nearest = nearest_prototype(similarities, counts > 0)
        loss = prototype_symmetric_cross_entropy(z, nearest, similarities.to(dtype), counts > 0, valid)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("size", "other"), [((8, 12), (2, 3)), ((2, 3), (8, 12)), ((9, 7), (3, 2))])
def test_resizing_takes_the_nearest(size, other):
    labels = torch.randint(0, 256, (2, *size), generator=torch.Generator().manual_seed(0))
    resized = resize_nearest(labels, other)
    assert resized.dtype == labels.dtype
    for b, y, x in np.ndindex(2, *other):
        assert resized[b, y, x] == labels[b, y * size[0] // other[0], x * size[1] // other[1]]
    assert resize_nearest(labels, size) is labels


def test_prototypes_that_follow_the_batches():
    """Against a loop: the first mean as it is, then momentum; a class without a pixel keeps its prototype."""
    expected = [None, None, None, None]
    prototypes = torch.zeros(4, 6, dtype=torch.float64)
    for seed in range(5):
        memory, _, labels = random_batch(seed, present=1 + seed % 3)
        sums, counts = feature_sums(memory, labels, 4)
        prototypes = update_prototypes(prototypes, sums.sum(0), counts.sum(0), 0.9)
        for c in range(4):
            found = [memory[b, :, y, x].numpy() for b, y, x in np.ndindex(labels.shape) if labels[b, y, x] == c]
            if found:
                mean = np.mean(found, axis=0)
                expected[c] = mean if expected[c] is None else 0.9 * expected[c] + 0.1 * mean
    for c in range(3):
        np.testing.assert_allclose(prototypes[c].numpy(), expected[c], atol=1e-12)
    assert expected[3] is None
    assert torch.equal(prototypes[3], torch.zeros(6, dtype=torch.float64))
