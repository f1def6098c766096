"""One fused pass from probabilities to sums: everything a score is made of, in constant memory.

Sums of images, batches and processes add up, so that every score derived from them is the score of all pixels
together. Nothing here waits for the device. Derived scores stand in `calibration`, `label_free` and `segmentation`.
"""

from functools import reduce
from itertools import zip_longest

import torch
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.metrics.calibration import BINS, calibration_error, merge_bins

FINE_BINS = 30 * 2**7
"""Confidence bins that are kept: 10 and 15 equal-width bins are unions of them, equal-mass bins nearly so.

A power of two times 30, since doubling is exact: the edges k/10 and k/15 fall, rounded, where 30 bins would have them.
"""

SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny
"""Floor of a probability under a logarithm, 1.2e-38: the NLL of a pixel is at most 87.3 nats."""

Sums = dict[str, Tensor]

_CHUNK = 1 << 16  # pixels: with 19 classes 5 MB, which stays in a CPU's cache


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision raised to float32; float32 and float64 stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def top_label(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Largest probability of every pixel and its class: (B, C, ...), C at most 254 → (B, ...) and uint8 (B, ...).

    The first class wins a tie. The same as ``probabilities.max(dim=1)``, five times as fast on a CPU.
    """
    if torch.onnx.is_in_onnx_export():  # which has no view of bits as numbers
        confidence, predicted = probabilities.max(dim=1)
        return confidence, predicted.to(torch.uint8)
    num_classes = probabilities.shape[1]
    confidence = probabilities.amax(1)
    # The first class has the highest rank: the largest rank among the maxima is the first maximum.
    rank = torch.arange(num_classes, 0, -1, dtype=torch.uint8, device=probabilities.device)
    is_top = (probabilities >= confidence.unsqueeze(1)).view(torch.uint8)
    best = is_top.mul_(rank.view(-1, *[1] * (probabilities.dim() - 2))).amax(1)
    return confidence, num_classes - best.clamp_(min=1)


def bin_index(confidence: Tensor, bins: int) -> Tensor:
    """Index of the right-closed equal-width bin of (0, 1]: 0 falls into the first bin, 1 into the last; int64."""
    return (confidence * bins).ceil_().long().sub_(1).clamp_(0, bins - 1)


def scatter_sum(values: Tensor, slots: Tensor, size: int) -> Tensor:
    """Sums of `values` (n,) by `slots` (n,), in float64; what is sent to the spare slot `size` is dropped: (size,)."""
    return values.new_zeros(size + 1, dtype=torch.float64).scatter_add(0, slots, values.double())[:size]


def group_probabilities(probabilities: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Probabilities of coarser classes, the sums over the classes of each group: (B, C, H, W) → (B, G, H, W).

    `groups` (C,) holds the group of every class, integers 0..G-1 (`label_spaces.score_groups`). The result is at least
    float32; a group without classes has probability 0.
    """
    probabilities = at_least_float32(probabilities)
    batch, _, height, width = probabilities.shape
    grouped = probabilities.new_zeros(batch, num_groups, height, width)
    return grouped.index_add_(1, groups.to(probabilities.device, torch.long), probabilities)


def score_sums(probabilities: Tensor, labels: Tensor | None = None, valid: Tensor | None = None) -> Sums:
    """All sums that the scores of a batch need, from one pass over its probabilities.

    Over real pixels (`valid`), labelled or not: ``pixels``; ``entropy`` in nats; ``confidence``; ``probabilities``
    (C,), the sum of p of each class; ``predicted`` (C,), pixels predicted as each class.

    Over labelled pixels, if `labels` is given: ``confusion`` (C, C), rows = labels, columns = predictions; ``bins``
    (3, C, FINE_BINS), pixel count, Σ confidence and Σ correct by label class and right-closed confidence bin; ``nll``,
    Σ −log p_y in nats; ``brier``, Σ (Σ_c p_c² − 2 p_y + 1); ``image_ece``, the 15-bin top-label calibration error of
    each image, summed over the ``images`` that have a labelled pixel.

    Args:
        probabilities: (B, C, H, W), sums to 1 over C (not logits: they are not recognised).
        labels: (B, H, W), uint8 or int64, 255 = takes part in nothing.
        valid: (B, H, W) bool, False where a pixel is padding; None: all pixels are real.

    Returns:
        Name → float64 sum.

    Raises:
        RuntimeError: (CPU) a label is neither a class nor 255.
    """
    probabilities = at_least_float32(probabilities.detach())
    # A missing map is an empty list of images: `zip_longest` hands out None for each.
    images = zip_longest(*(() if maps is None else maps for maps in (probabilities, labels, valid)))
    return reduce(_add, (_image_sums(*image) for image in images))


def _add(one: Sums, other: Sums) -> Sums:
    return {name: value + other[name] for name, value in one.items()}


def _image_sums(probabilities: Tensor, labels: Tensor | None, valid: Tensor | None) -> Sums:
    maps = (probabilities, labels, valid)
    pieces = zip_longest(*(() if part is None else torch.split(part.flatten(-2), _CHUNK, -1) for part in maps))
    sums = reduce(_add, (_pixel_sums(*piece) for piece in pieces))
    if labels is not None:
        bins = sums["bins"].sum(1)
        has_pixels = bins[0].sum() > 0
        sums["image_ece"] = torch.where(has_pixels, calibration_error(merge_bins(bins, BINS)), 0)
        sums["images"] = has_pixels.double()
    return sums


def _pixel_sums(probabilities: Tensor, labels: Tensor | None, valid: Tensor | None) -> Sums:
    if valid is not None:
        # Zero probabilities add nothing to any of the label-free sums.
        probabilities = torch.where(valid, probabilities, 0)
        labels = None if labels is None else torch.where(valid, labels, IGNORE)
    confidence, predicted = (top[0] for top in top_label(probabilities[None]))
    predicted = predicted.long()
    sums = _label_free_sums(probabilities, confidence, predicted, valid)
    return sums if labels is None else sums | _label_sums(probabilities, confidence, predicted, labels)


def _label_free_sums(probabilities: Tensor, confidence: Tensor, predicted: Tensor, valid: Tensor | None) -> Sums:
    num_classes = len(probabilities)
    slots = predicted if valid is None else torch.where(valid, predicted, num_classes)
    per_class = scatter_sum(torch.ones_like(confidence), slots, num_classes)
    negative_entropy = probabilities.clamp_min(SMALLEST_PROBABILITY).log_().mul_(probabilities).sum(0)
    return {
        "pixels": per_class.sum(),
        "entropy": -negative_entropy.double().sum(),
        "confidence": confidence.double().sum(),
        "probabilities": probabilities.sum(1).double(),
        "predicted": per_class,
    }


def _label_sums(probabilities: Tensor, confidence: Tensor, predicted: Tensor, labels: Tensor) -> Sums:
    num_classes = len(probabilities)
    labelled = labels != IGNORE
    target = torch.where(labelled, labels, 0).long()
    p_target = probabilities.gather(0, target[None])[0]
    brier = (probabilities * probabilities).sum(0) - 2 * p_target + 1
    nll = -p_target.clamp_min(SMALLEST_PROBABILITY).log()

    cell = torch.where(labelled, target * num_classes + predicted, num_classes**2)
    size = num_classes * FINE_BINS
    slot = torch.where(labelled, target * FINE_BINS + bin_index(confidence, FINE_BINS), size)
    per_bin = [scatter_sum(v, slot, size) for v in (torch.ones_like(confidence), confidence, predicted == target)]
    return {
        "confusion": scatter_sum(torch.ones_like(confidence), cell, num_classes**2).view(num_classes, num_classes),
        "bins": torch.stack(per_bin).view(3, num_classes, FINE_BINS),
        "nll": torch.where(labelled, nll, 0).double().sum(),
        "brier": torch.where(labelled, brier, 0).double().sum(),
    }
