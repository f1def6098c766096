from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfda.pseudo_labels.thresholds import (
    BINS,
    bin_histogram,
    class_thresholds,
    class_weights,
    confidence_bins,
    effective_number,
    image_thresholds,
    lower_edges,
    realised_fraction,
    select_labels,
)

examples = settings(deadline=None, max_examples=40)
FRACTIONS = ["0", "0.000001", "0.07", "0.1", "0.15", "0.2", "0.5", "0.999", "1"]


def sorted_threshold(bins, fraction):
    """The quantised value that the last of the top `fraction` of a list has, by sorting; exact arithmetic."""
    wanted = ceil(Fraction(fraction) * len(bins))
    if len(bins) == 0:
        return 1024
    return sorted(bins, reverse=True)[wanted - 1] if wanted else 2048


def maps(seed, num_classes, shape, kind="random"):
    generator = np.random.default_rng(seed)
    predicted = generator.integers(0, num_classes, shape).astype(np.uint8)
    if kind == "few":  # most classes are never predicted
        predicted[predicted > num_classes // 2] = 0
    confidence = generator.random(shape, dtype=np.float32) ** 0.2
    if kind == "equal":
        confidence[:] = 0.7
    elif kind == "saturated":
        confidence[generator.random(shape) < 0.5] = 1
    return torch.from_numpy(predicted), torch.from_numpy(confidence)


@given(k=st.integers(0, BINS), dtype=st.sampled_from([torch.float32, torch.float64]))
@examples
def test_bins_are_closed_below_and_open_above(k, dtype):
    edge = torch.tensor([k / BINS], dtype=dtype)
    below = torch.nextafter(edge, torch.tensor([-1.0], dtype=dtype)).clamp(min=0)
    assert confidence_bins(edge).tolist() == [min(k, BINS - 1)]
    assert confidence_bins(below).tolist() == [max(k - 1, 0)]


def test_bins_of_half_precision_and_of_rounding_errors():
    assert confidence_bins(torch.tensor([0.0, 0.5, 1.0, 1 + 1e-6, -1e-9])).tolist() == [0, 1024, 2047, 2047, 0]
    assert confidence_bins(torch.tensor([0.998046875], dtype=torch.bfloat16)).tolist() == [2047]  # rounds to 1
    assert confidence_bins(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.int16


@given(
    seed=st.integers(0, 10_000),
    num_classes=st.integers(2, 150),
    height=st.integers(1, 9),
    kind=st.sampled_from(["random", "few", "equal", "saturated"]),
    fraction=st.sampled_from(FRACTIONS),
)
@examples
def test_thresholds_against_sorting(seed, num_classes, height, kind, fraction):
    predicted, confidence = maps(seed, num_classes, (3, height, 11), kind)
    bins = confidence_bins(confidence)
    # As a stream: one image after the other.
    histogram = sum(bin_histogram(p, b, num_classes) for p, b in zip(predicted, bins, strict=True))
    assert histogram.sum() == predicted.numel()
    quantised = np.floor(confidence.double().numpy() * 2048).clip(0, 2047).astype(int)
    expected = [sorted_threshold(quantised[predicted.numpy() == c].tolist(), fraction) for c in range(num_classes)]
    by_class = class_thresholds(histogram, float(fraction))
    assert by_class.tolist() == expected
    by_image = image_thresholds(bins, float(fraction))
    assert by_image.tolist() == [sorted_threshold(q.flatten().tolist(), fraction) for q in quantised]

    labels = select_labels(predicted, bins, by_class, by_image)
    assert labels.dtype == torch.uint8
    for b in range(3):
        for (i, j), s in np.ndenumerate(quantised[b]):
            c = int(predicted[b, i, j])
            assert labels[b, i, j] == (c if s > 0 and (s >= expected[c] or s >= by_image[b]) else 255)


def test_an_image_of_no_confidence_gets_no_label():
    """ê = 1 brings every pixel into the lowest bin, and the threshold of the image with them."""
    bins = confidence_bins(torch.rand(1, 4, 5) * (1 - 0.9999))
    predicted = torch.zeros(1, 4, 5, dtype=torch.uint8)
    by_image = image_thresholds(bins, 0.1)
    assert by_image.tolist() == [0]
    assert (select_labels(predicted, bins, torch.zeros(1, dtype=torch.int64), by_image) == 255).all()


@given(n=st.integers(1, 500), percent=st.integers(0, 100))
@example(n=100, percent=7)  # 0.07 · 100 is 7.000000000000001
@examples
def test_exactly_the_fraction_where_all_bins_differ(n, percent):
    histogram = torch.zeros(1, BINS, dtype=torch.int64)
    histogram[0, torch.randperm(BINS)[:n]] = 1
    threshold = class_thresholds(histogram, percent / 100)
    assert histogram[0, threshold.item() :].sum() == ceil(Fraction(percent, 100) * n)


def test_counts_beyond_32_bits():
    histogram = torch.zeros(1, BINS, dtype=torch.int64)
    histogram[0, 100], histogram[0, 2000] = 17 * 10**9, 3 * 10**9
    assert class_thresholds(histogram, 0.15).tolist() == [2000]
    histogram[0, 2000] -= 1
    assert class_thresholds(histogram, 0.15).tolist() == [100]


def test_one_pixel():
    histogram = bin_histogram(torch.tensor([[1]]), confidence_bins(torch.tensor([[0.9]])), 3)
    bins = class_thresholds(histogram, 0.15)
    assert bins.tolist() == [1024, int(0.9 * 2048), 1024]
    assert lower_edges(bins).tolist() == [0.5, 1843 / 2048, 0.5]


def test_realised_fraction():
    labelled, predicted = torch.tensor([3, 0, 0]), torch.tensor([4, 5, 0])
    assert realised_fraction(labelled, predicted).tolist() == [0.75, 0, 0]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=150))
@examples
def test_class_weights_against_a_loop(thresholds):
    inverse = [1 / min(max(t, 0.05), 1) for t in thresholds]
    expected = [w * len(inverse) / sum(inverse) for w in inverse]
    weights = class_weights(torch.tensor(thresholds, dtype=torch.float64))
    assert weights.tolist() == pytest.approx(expected)
    number = effective_number(weights).item()
    assert number == pytest.approx(sum(expected) ** 2 / sum(w * w for w in expected))
    assert 1 <= number <= len(thresholds) + 1e-9


def test_effective_number_at_its_ends():
    assert effective_number(torch.full((19,), 0.3)).item() == pytest.approx(19)
    assert effective_number(torch.tensor([0.0, 2.0, 0.0])).item() == 1
