"""Class-balanced thresholds of confidence, from histograms that take constant memory.

A class (or an image) is given the threshold that its most confident pixels pass, a fixed fraction of them, so that
hard classes are labelled as often as easy ones. Implemented from the published descriptions of Cal-SFDA (arXiv
2308.03003) and of class-balanced self-training (arXiv 1810.07911).

Confidences are looked at as bins only. A threshold is the number of a bin, and stands for its lower edge.
"""

import torch
from torch import Tensor

from sfda.metrics.functional import at_least_float32

BINS = 2048
"""Half-open bins of [0, 1]: bin k holds k/2048 ≤ s < (k + 1)/2048, the last one 1 as well."""

UNLABELLED = 255
"""Label of a pixel that has none."""

NEVER_PREDICTED = BINS // 2
"""Threshold, 0.5, of a class that no pixel is predicted as."""

SMALLEST_THRESHOLD = 0.05
"""Floor of a threshold in `class_weights`."""


def confidence_bins(confidence: Tensor) -> Tensor:
    """Bin of every confidence: (...) in [0, 1] → (...) int16."""
    return (at_least_float32(confidence) * BINS).clamp(0, BINS - 1).to(torch.int16)


def bin_histogram(groups: Tensor, bins: Tensor, num_groups: int) -> Tensor:
    """Pixels of each group in each bin; histograms of batches and of processes add up.

    Args:
        groups: (...) integers 0..num_groups-1, such as the predicted classes.
        bins: (...) see `confidence_bins`.
        num_groups: Number of groups G.

    Returns:
        (G, BINS) int64.
    """
    slots = groups.int() * BINS + bins
    return torch.bincount(slots.flatten(), minlength=num_groups * BINS).view(num_groups, BINS)


def class_thresholds(histogram: Tensor, fraction: float) -> Tensor:
    """The highest bins that at least `fraction` of the pixels of each class lie in or above.

    Args:
        histogram: (C, BINS), see `bin_histogram`.
        fraction: In [0, 1]; 0 gives the threshold `BINS`, which no pixel passes.

    Returns:
        (C,) int64 bins; `NEVER_PREDICTED` for a class without a pixel.
    """
    from_above = histogram.flip(1).cumsum(1)
    total = from_above[:, -1]
    # Rounded up, but not where only a rounding error makes 0.07 · 100 more than 7.
    wanted = (total.double() * (fraction * (1 - 1e-12))).ceil()
    bins = BINS - (from_above < wanted[:, None]).sum(1) - (wanted > 0).long()
    return torch.where(total > 0, bins, NEVER_PREDICTED)


def image_thresholds(bins: Tensor, fraction: float) -> Tensor:
    """The same rule for all pixels of each image together: (B, H, W) bins → (B,) int64 bins."""
    if fraction == 0:
        return torch.full((len(bins),), BINS, device=bins.device)
    images = torch.arange(len(bins), device=bins.device).view(-1, 1, 1).expand_as(bins)
    return class_thresholds(bin_histogram(images, bins, len(bins)), fraction)


def select_labels(predicted: Tensor, bins: Tensor, by_class: Tensor, by_image: Tensor) -> Tensor:
    """Pseudo-labels: the predicted class where either threshold is passed, 255 elsewhere.

    The lowest bin is never labelled: confidences below 1/2048 are those of images whose error was estimated as 1, and
    all pixels of such an image would pass a threshold of 0.

    Args:
        predicted: (B, H, W) uint8 classes.
        bins: (B, H, W), see `confidence_bins`.
        by_class: (C,) threshold of each class.
        by_image: (B,) threshold of each image.

    Returns:
        (B, H, W) uint8.
    """
    passed = (bins >= by_class[predicted.long()]) | (bins >= by_image.view(-1, 1, 1))
    return torch.where(passed & (bins > 0), predicted, UNLABELLED)


def lower_edges(bins: Tensor) -> Tensor:
    """Confidences, float64, that thresholds stand for."""
    return bins.double() / BINS


def realised_fraction(labelled: Tensor, predicted: Tensor) -> Tensor:
    """Share of the pixels predicted as each class that got a label: (C,) and (C,) counts → (C,) float64 in [0, 1].

    More than the fraction asked for where many pixels share the bin of the threshold, or pass that of their image; 0
    for a class that is never predicted.
    """
    return labelled.double() / predicted.clamp(min=1)


def class_weights(thresholds: Tensor) -> Tensor:
    """Weights w ∝ 1/threshold, which favour classes that the network is unsure of; their mean is 1.

    Args:
        thresholds: (C,) of the confidence as it is, not scaled by an estimated error; clamped to [0.05, 1].
    """
    weights = 1 / at_least_float32(thresholds).clamp(SMALLEST_THRESHOLD, 1)
    return weights / weights.mean()


def effective_number(weights: Tensor) -> Tensor:
    """Number of classes that weights (C,) amount to, (Σw)² / Σw²: C where all are alike, 1 where one has all."""
    return weights.sum().square() / weights.square().sum()
