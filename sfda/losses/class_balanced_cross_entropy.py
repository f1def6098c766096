"""Cross-entropy in which rare and long unseen classes weigh more: CE_cb of IAPC.

Implemented from the published description (arXiv 2306.01598). A pixel's cross-entropy is weighted by its class, and
the weights are not divided out again: means are over all real pixels, an unlabelled one counts 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.metrics.functional import at_least_float32, scatter_sum

RARE_SHARE = 64 * 64 / (256 * 512)
"""A class with a smaller share of the pixels is rare: 64·64 of the published 256x512 crop."""


def class_pixels(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of every class in a batch of labels (B, H, W), 255 = unlabelled: (C,) float64; those of ranks add up."""
    slots = labels.masked_fill(labels == IGNORE, num_classes).flatten().long()
    return scatter_sum(torch.ones_like(slots, dtype=torch.float32), slots, num_classes)


def update_absence(absence: Tensor, pixels: Tensor, weight: float = 7.0, momentum: float = 0.9) -> Tensor:
    """Moving average, over batches, of `weight` for a class that is absent from a batch and 1 for one that is there.

    `absence` (C,) is 1 at the start of a run, and stays between 1 and `weight`; `pixels` (C,) are those of
    `class_pixels`, and `momentum` in [0, 1] is the share of the old average.
    """
    absent = torch.where(pixels == 0, weight, 1.0).to(absence.dtype)
    return momentum * absence + (1 - momentum) * absent


def class_weights(pixels: Tensor, area: int, absence: Tensor, weight: float = 7.0) -> Tensor:
    """Weights of the classes in one batch: `absence` of `update_absence`, times `weight` for a rare class.

    Rare are `pixels` (C,) below `RARE_SHARE` of the `area`, all B·H·W pixels of the batch with their padding. Weights
    (C,) are at least 1 and at most the square of `weight`.
    """
    return torch.where(pixels < RARE_SHARE * area, weight, 1.0).to(absence.dtype) * absence


def class_balanced_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of every pixel times the weight of its class: a map for `sfda.losses.mean.mean_over_pixels`.

    From logits (B, C, H, W), raised to float32, labels (B, H, W) int64, 255 = unlabelled, and weights (C,) to
    (B, H, W), 0 where unlabelled.
    """
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, labels, weights.to(logits.dtype), ignore_index=IGNORE, reduction="none")
