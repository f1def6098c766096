import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from torchmetrics.functional.classification import multiclass_confusion_matrix

from sfda.metrics import functional
from sfda.metrics.functional import FINE_BINS, bin_index, group_probabilities, score_sums, top_label


def random_batch(seed, batch=2, classes=5, height=7, width=11, ignored=0.3, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, height, width, generator=generator)
    labels = torch.randint(0, classes, (batch, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return (scale * logits).softmax(1), labels


def loop_bins(probabilities, labels, bins):
    """(3, C, bins) by a loop over pixels; membership by comparison with the edges k / bins."""
    classes = probabilities.shape[1]
    sums = np.zeros((3, classes, bins))
    edges = np.arange(bins + 1, dtype=probabilities.numpy().dtype) / bins
    for image, label in zip(probabilities.numpy(), labels.numpy(), strict=True):
        for row, column in np.argwhere(label != 255):
            p, y = image[:, row, column], label[row, column]
            k = next(m for m in range(bins) if p.max() <= edges[m + 1] or m == bins - 1)
            sums[:, y, k] += 1, p.max(), p.argmax() == y
    return sums


@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=20)
def test_top_label_is_the_first_maximum(seed, classes, dtype):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(0, 4, (2, classes, 3, 5), generator=generator).to(dtype)  # few values: many ties
    confidence, predicted = top_label(p)
    np.testing.assert_array_equal(confidence.numpy(), p.numpy().max(1))
    np.testing.assert_array_equal(predicted.numpy(), p.numpy().argmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [10, 15, 30])
def test_bins_are_right_closed_and_unions_of_the_fine_ones(bins, dtype):
    edges = torch.arange(bins + 1, dtype=dtype) / bins
    expected = torch.arange(bins + 1) - 1
    expected[0] = 0
    assert torch.equal(bin_index(edges, bins), expected)
    assert torch.equal(bin_index(edges, FINE_BINS) // (FINE_BINS // bins), expected)
    above = edges[:-1] + 1e-5
    assert torch.equal(bin_index(above, bins), torch.arange(bins))
    assert torch.equal(bin_index(above, FINE_BINS) // (FINE_BINS // bins), torch.arange(bins))


def test_a_confidence_rounded_above_one_falls_into_the_last_bin():
    assert bin_index(torch.tensor([1.0000001, 1.0, 0.0]), 15).tolist() == [14, 14, 0]


@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0, 1))
@settings(deadline=None, max_examples=15)
def test_bins_against_a_loop_over_pixels(seed, classes, ignored):
    p, labels = random_batch(seed, classes=classes, height=4, width=5, ignored=ignored)
    bins = score_sums(p, labels)["bins"]
    for number in (10, 15):
        merged = bins.reshape(3, classes, number, -1).sum(-1)
        np.testing.assert_allclose(merged.numpy(), loop_bins(p, labels, number), atol=1e-6)


def test_bins_of_extreme_confidences():
    one_hot = torch.zeros(1, 3, 1, 4)
    one_hot[0, [0, 1, 2], 0, [0, 1, 2]] = 1.0  # the fourth pixel has no probability at all
    bins = score_sums(one_hot, torch.tensor([[[0, 2, 255, 1]]]))["bins"]
    assert bins[:, 0, -1].tolist() == [1, 1, 1]
    assert bins[:, 2, -1].tolist() == [1, 1, 0]
    assert bins[:, 1, 0].tolist() == [1, 0, 0]
    assert bins[0].sum() == 3


@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([torch.uint8, torch.int64]))
@settings(deadline=None, max_examples=15)
def test_confusion_against_torchmetrics(seed, classes, dtype):
    p, labels = random_batch(seed, classes=classes)
    sums = score_sums(p, labels.to(dtype))
    expected = multiclass_confusion_matrix(p, labels, num_classes=classes, ignore_index=255)
    assert torch.equal(sums["confusion"], expected.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_against_numpy(dtype):
    p, labels = random_batch(0, ignored=0.3)
    p = p.to(dtype)
    sums = score_sums(p, labels)
    q, y = p.double().numpy().transpose(0, 2, 3, 1), labels.numpy()
    labelled = y != 255
    p_y = q[labelled, y[labelled]]
    one_hot = np.eye(5)[y[labelled]]
    expected = {
        "pixels": y.size,
        "entropy": scipy_entropy(q, axis=-1).sum(),
        "confidence": q.max(-1).sum(),
        "probabilities": q.sum((0, 1, 2)),
        "predicted": np.bincount(q.argmax(-1).ravel(), minlength=5),
        "nll": -np.log(p_y).sum(),
        "brier": ((q[labelled] - one_hot) ** 2).sum(),
        "images": 2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name].numpy(), value, rtol=1e-6, err_msg=name)
        assert sums[name].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_anything_is_summed(dtype):
    p, labels = random_batch(0)
    expected = score_sums(p.to(dtype).float(), labels)
    assert all(torch.equal(value, expected[name]) for name, value in score_sums(p.to(dtype), labels).items())


def test_image_ece_is_summed_over_images_with_a_label():
    p, labels = random_batch(1, batch=3)
    labels[1] = 255
    sums = score_sums(p, labels)
    expected = 0.0
    for i in (0, 2):
        count, confidence, correct = loop_bins(p[i : i + 1], labels[i : i + 1], 15).sum(1)
        expected += np.abs(correct - confidence).sum() / count.sum()
    assert sums["images"] == 2
    assert sums["image_ece"].item() == pytest.approx(expected, abs=1e-6)


def test_a_zero_probability_has_a_finite_nll():
    p = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    sums = score_sums(p, torch.tensor([[[1]]]))
    assert sums["nll"].item() == pytest.approx(87.3365, abs=1e-3)
    assert sums["entropy"] == 0


@pytest.mark.parametrize("value", [0.0, 7.0, float("nan")])
def test_ignored_pixels_take_part_in_no_label_sum(value):
    p, labels = random_batch(2)
    before = score_sums(p, labels)
    changed = torch.where((labels == 255)[:, None], value, p)
    after = score_sums(changed, labels)
    for name in ("confusion", "bins", "nll", "brier", "image_ece", "images"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["probabilities"], after["probabilities"])


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_padding_takes_part_in_nothing(value):
    p, labels = random_batch(3, height=8, width=8, ignored=0.1)
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[:, 6:], valid[:, :, 5:] = False, False
    whole = score_sums(torch.where(valid[:, None], p, value), labels, valid)
    part = score_sums(p[:, :, :6, :5], labels[:, :6, :5])
    for name, expected in part.items():
        torch.testing.assert_close(whole[name], expected, rtol=1e-6, atol=1e-9, msg=name)


def test_unlabelled_pixels_take_part_in_label_free_sums():
    p, labels = random_batch(4)
    with_labels, without = score_sums(p, labels), score_sums(p)
    assert set(without) == {"pixels", "entropy", "confidence", "probabilities", "predicted"}
    assert all(torch.equal(with_labels[name], value) for name, value in without.items())


def test_all_pixels_ignored_gives_zero_label_sums():
    p, labels = random_batch(5)
    sums = score_sums(p, torch.full_like(labels, 255))
    assert all(sums[name].abs().sum() == 0 for name in ("confusion", "bins", "nll", "brier", "image_ece", "images"))


def test_pieces_of_a_large_image_make_no_difference(monkeypatch):
    p, labels = random_batch(6, height=40, width=30)
    valid = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    whole = score_sums(p, labels, valid)
    monkeypatch.setattr(functional, "_CHUNK", 97)
    for name, value in score_sums(p, labels, valid).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-9, msg=name)


def test_channels_last_memory_makes_no_difference():
    p, labels = random_batch(7)
    for name, value in score_sums(p.contiguous(memory_format=torch.channels_last), labels).items():
        torch.testing.assert_close(value, score_sums(p, labels)[name], msg=name)


def test_a_label_that_is_no_class_is_refused():
    p, labels = random_batch(8)
    labels[0, 0, 0] = 5
    with pytest.raises(RuntimeError, match="out of bounds"):
        score_sums(p, labels)


def test_group_probabilities_against_a_loop():
    p, _ = random_batch(9, classes=6)
    groups = torch.tensor([2, 0, 2, 3, 0, 2], dtype=torch.uint8)
    grouped = group_probabilities(p, groups, 4)
    for group in range(4):
        members = [c for c in range(6) if groups[c] == group]
        torch.testing.assert_close(grouped[:, group], sum((p[:, c] for c in members), torch.zeros_like(p[:, 0])))
    assert group_probabilities(p.half(), groups, 4).dtype == torch.float32


def test_a_group_can_win_where_none_of_its_classes_does():
    p = torch.tensor([0.4, 0.3, 0.3]).view(1, 3, 1, 1)
    assert p.argmax(1).item() == 0
    assert group_probabilities(p, torch.tensor([0, 1, 1]), 2).argmax(1).item() == 1
