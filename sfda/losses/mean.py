"""Means over some of the pixels of a batch, or of the batches of all processes."""

import torch
from torch import Tensor

from sfda.ranks import ALONE, Ranks

_FEWEST = 1e-6  # one pixel, shared by however many processes, is more


def mean_over_pixels(values: Tensor, chosen: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean of `values` (B, H, W), at least float32, where `chosen` (B, H, W) bool; 0 with a gradient without any.

    With `ALL_RANKS` the mean over the processes of what each gets, and so what DDP minimises, is the mean over the
    pixels of all of them.
    """
    return torch.where(chosen, values, 0).sum() / number_of_pixels(chosen, values.dtype, ranks)


def number_of_pixels(chosen: Tensor, dtype: torch.dtype, ranks: Ranks = ALONE) -> Tensor:
    """Divisor of a sum over the `chosen` pixels (B, H, W) bool: their number (its mean over `ranks`), above 0."""
    return ranks.mean(chosen.sum().to(dtype)).clamp(min=_FEWEST)
