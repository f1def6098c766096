"""What summed confidence bins say: calibration errors of several kinds.

Bins are (3, ..., M): pixel count, Σ confidence and Σ correct of M bins in the order of confidence, in float64.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

BINS = 15
"""Bins of the headline ECE, of the ECE of one image and of the reliability diagram."""


def merge_bins(bins: Tensor, number: int) -> Tensor:
    """Equal-width bins (3, ..., number) as unions of finer ones (3, ..., k · number)."""
    return bins.reshape(*bins.shape[:-1], number, -1).sum(-1)


def equal_mass_bins(bins: Tensor, number: int) -> Tensor:
    """Bins that hold equally many pixels: (3, M) → (3, number).

    A fine bin that a quantile falls into is divided in proportion, so the bins are exact but for the order of the
    pixels inside that fine bin.
    """
    total = torch.cat([bins.new_zeros(3, 1), bins.cumsum(1)], dim=1)
    quantiles = total[0, -1] * torch.arange(number + 1, device=bins.device) / number
    cut = torch.searchsorted(total[0, 1:].contiguous(), quantiles).clamp_(max=bins.shape[1] - 1)
    share = (quantiles - total[0, cut]) / bins[0, cut].clamp(min=1)
    return (total[:, cut] + share * bins[:, cut]).diff(dim=1)


def calibration_error(bins: Tensor) -> Tensor:
    """Expected calibration error ``Σ_m (n_m / n) · |acc_m − conf_m|``: (3, ..., M) → (...), NaN without a pixel."""
    count, confidence, correct = bins.unbind()
    return (correct - confidence).abs().sum(-1) / count.sum(-1)


def reliability(bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel count, mean confidence and accuracy of every bin: (3, M) → three (M,), the last two NaN without a pixel."""
    count, confidence, correct = bins.unbind()
    return count, confidence / count, correct / count


def calibration_scores(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Calibration scores of all labelled pixels, from the sums of `score_sums`; NaN where there is none.

    ``ece`` (15 equal-width bins, top label), ``ece_10`` (10), ``ece_adaptive`` (15 bins of equal mass),
    ``ece_image_mean`` (mean of the images' own ECE), ``classwise_ece`` (pixels grouped by ground-truth class, mean
    over the classes present), ``mce`` (largest gap of the 15 bins), all in [0, 1]; ``nll`` in nats and ``brier`` in
    [0, 2], means per pixel.
    """
    per_class = merge_bins(sums["bins"], BINS)
    fine = sums["bins"].sum(1)
    count, confidence, accuracy = reliability(per_class.sum(1))
    pixels = count.sum()
    return {
        "ece": calibration_error(per_class.sum(1)),
        "ece_10": calibration_error(merge_bins(fine, 10)),
        # On the CPU: CUDA has no cumulative sum under `deterministic=True`.
        "ece_adaptive": calibration_error(equal_mass_bins(fine.cpu(), BINS)).to(fine.device),
        "ece_image_mean": sums["image_ece"] / sums["images"],
        "classwise_ece": calibration_error(per_class).nanmean(),
        "mce": torch.where(pixels > 0, (accuracy - confidence).abs().nan_to_num(0).amax(), torch.nan),
        "nll": sums["nll"] / pixels,
        "brier": sums["brier"] / pixels,
    }
