"""Weights between two networks of one structure."""

from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> State:
    """Give start + share · (end − start) of every floating-point tensor, exact at 0 and 1; other tensors are the end's.

    Args:
        start: Tensors by name, such as a network's `state_dict`.
        end: The same names with the same shapes; nothing of it is changed.
        share: In [0, 1].
    """
    return {name: _between(start[name].to(value.device), value, share) for name, value in end.items()}


def _between(start: Tensor, end: Tensor, share: float) -> Tensor:
    if not end.is_floating_point():
        return end.clone()
    return torch.where(start == end, end, torch.lerp(start, end, share))  # −∞, as in masks of attention, stays
