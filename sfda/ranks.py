"""What the processes of a run know together.

DDP averages the gradients of the processes, so that a loss is the same on any number of them if its constants
(divisors, maxima, mean predictions) are those of all of them: with `ALL_RANKS` they are. The losses on labels that a
method makes itself use it, as the number of these in a process's batch is chance. Other means, over ground truth
or over all real pixels, are each process's own, as is usual with DDP: their divisors differ by ignored pixels and
padding alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all processes, on each of them the same; one process gets a copy of its own."""
    total = values.clone()
    if _initialised():
        dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over all processes of floating-point values, without a gradient; one process gets its own."""
    return sum_over_ranks(values.detach()) / dist.get_world_size() if _initialised() else values.detach()


def largest_over_ranks(values: Tensor) -> Tensor:
    """The largest of all processes, entry by entry, without a gradient; one process gets its own."""
    largest = values.detach().clone()
    if _initialised():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def gather_over_ranks(values: list[str]) -> list[str]:
    """The values of all processes, one process after the other."""
    if not _initialised():
        return values
    parts: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


class Ranks(NamedTuple):
    """How a loss brings its constants together with those of other processes; these have to call it together."""

    mean: Callable[[Tensor], Tensor]
    largest: Callable[[Tensor], Tensor]


ALONE = Ranks(mean=Tensor.detach, largest=Tensor.detach)
"""Each process by itself."""

ALL_RANKS = Ranks(mean=mean_over_ranks, largest=largest_over_ranks)
"""All processes of the run."""


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
