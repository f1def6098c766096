"""Exponential moving averages of networks: teachers and memories."""

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """``average = momentum · average + (1 − momentum) · current`` for every parameter; buffers are copied.

    To be called once an optimizer step: after n of them with equal `current`, what is left of the start is
    ``momentum ** n``.

    Args:
        average: Changed in place.
        current: A module of the same structure.
        momentum: In [0, 1]; 1 never moves.
    """
    for old, new in zip(average.parameters(), current.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)
    for buffer, copied in zip(average.buffers(), current.buffers(), strict=True):
        buffer.copy_(copied)
