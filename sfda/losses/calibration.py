"""Calibration error that can be minimised: class-wise ECE, differentiable in the confidence.

Implemented from the published description of Cal-SFDA (arXiv 2308.03003). Pixels of one image are grouped by their
ground-truth class; each group has an ECE over right-closed equal-width bins of the top-label confidence.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfda.data.label_spaces import IGNORE
from sfda.metrics.functional import at_least_float32, bin_index, scatter_sum, top_label

Absent = Literal["skip", "zero"]
"""Classes without a pixel in an image: left out of its average, or counted as an error of 0 (the official code)."""


class _SoftMaximum(torch.autograd.Function):
    """``t · logsumexp(p / t)`` over dim 1, from one exponential in both directions together."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, temperature: float) -> Tensor:
        # The shift by the maximum keeps the precision that p / t would lose.
        largest = probabilities.amax(1, keepdim=True)
        # exp(-80) is nothing beside the maximum's 1; below it, CPUs take ten times as long.
        weights = (probabilities - largest).div_(temperature).clamp_(min=-80).exp_()
        total = weights.sum(1, keepdim=True)
        ctx.save_for_backward(weights, total)
        return (largest + temperature * total.log()).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weights, total = ctx.saved_tensors
        return weights * (grad.unsqueeze(1) / total), None


def soft_confidence(probabilities: Tensor, temperature: float = 1e-5) -> Tensor:
    """Top-label confidence with a gradient: ``t · logsumexp(p / t)`` over the classes.

    From probabilities (B, C, ...) to (B, ...), at least float32. It exceeds the maximum by at most ``t · ln C``; as
    t → 0 its gradient goes to the top class alone, and with t above about 0.1 it is no confidence. It can be
    differentiated once.
    """
    soft: Tensor = _SoftMaximum.apply(at_least_float32(probabilities), temperature)
    return soft


def image_ece(
    probabilities: Tensor, labels: Tensor, bins: int = 10, temperature: float = 1e-5, absent: Absent = "skip"
) -> Tensor:
    """Class-averaged calibration error of every image.

    The error of a class is ``Σ_m (n_m / n) · |acc_m − conf_m|`` over the pixels labelled so. Bins are chosen by the
    exact maximum; they and the accuracy carry no gradient, the (soft) confidence does.

    Args:
        probabilities: (B, C, H, W), sums to 1 over C; half precision is raised to float32.
        labels: (B, H, W), uint8 or int64, 255 = takes part in nothing.
        bins: Number of bins M on (0, 1]; confidence 0 belongs to the first, 1 to the last.
        temperature: t of `soft_confidence`.
        absent: What a class without a pixel counts.

    Returns:
        (B,) in [0, 1] (and at most ``t · ln C`` above it); 0 with a gradient for an image without a labelled pixel.
    """
    batch, num_classes = probabilities.shape[:2]
    exact, predicted = top_label(at_least_float32(probabilities.detach()))
    surplus = (predicted == labels).to(exact.dtype) - soft_confidence(probabilities, temperature)

    # A group is one class of one image; ignored pixels go to a spare slot after all groups.
    image = torch.arange(batch, device=labels.device).view(-1, 1, 1)
    slots = (image * num_classes + labels) * bins + bin_index(exact, bins)
    slots = slots.masked_fill_(labels == IGNORE, batch * num_classes * bins).flatten()
    # n_m · (acc_m − conf_m) is the sum of (correct − confidence) in the bin, so a bin needs no division.
    gap = scatter_sum(surplus.flatten(), slots, batch * num_classes * bins).view(batch, num_classes, bins)
    count = scatter_sum(torch.ones_like(exact).flatten(), slots, gap.numel()).view_as(gap).sum(2)

    error = gap.abs().sum(2) / count.clamp(min=1)
    averaged = num_classes if absent == "zero" else (count > 0).sum(1).clamp(min=1)
    return (error.sum(1) / averaged).to(exact.dtype)


def classwise_ece(
    probabilities: Tensor, labels: Tensor, bins: int = 10, temperature: float = 1e-5, absent: Absent = "skip"
) -> Tensor:
    """Mean of `image_ece` over the images that have a labelled pixel: the loss ECE_diff of source training.

    A scalar, at least float32; 0 with a gradient where every pixel is ignored.
    """
    labelled_images = (labels != IGNORE).flatten(1).any(1).sum()
    return image_ece(probabilities, labels, bins, temperature, absent).sum() / labelled_images.clamp(min=1)
