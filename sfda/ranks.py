"""The processes (ranks) of a run, and what they know together.

DDP averages the gradients of the processes, so that a loss is the same on any number of them if its constants
(divisors, maxima, mean predictions) are those of all of them: with `ALL_RANKS` they are. The losses on labels that a
method makes itself use it, as the number of these in a process's batch is chance. Other means, over ground truth
or over all real pixels, are each process's own, as is usual with DDP: their divisors differ by ignored pixels and
padding alone.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
Value = TypeVar("Value")


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process and number of processes; (0, 1) outside of a process group."""
    return (dist.get_rank(), dist.get_world_size()) if _initialised() else (0, 1)


def barrier() -> None:
    """Wait for all processes, where there are several."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all processes, which call each reduction together; one process gets a copy of its own."""
    return _reduced(values, dist.ReduceOp.SUM)


def sum_on_cpu_over_ranks(values: Tensor) -> Tensor:
    """The sum over all processes of values on the CPU, back on the CPU; NCCL alone has to have them on the GPU."""
    on_gpu = _initialised() and "nccl" in dist.get_backend()
    return sum_over_ranks(values.to("cuda" if on_gpu else "cpu")).cpu()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over all processes of floating-point values, without a gradient; one process gets its own."""
    return sum_over_ranks(values.detach()) / rank_and_world_size()[1] if _initialised() else values.detach()


def mean_of_all_ranks(values: Tensor) -> float:
    """The mean of the values (N,) of all processes, of which each may have another number; NaN where none has any."""
    total, count = sum_over_ranks(torch.stack([values.sum(), values.new_tensor(len(values))])).tolist()
    return float(total / count) if count else math.nan


def largest_over_ranks(values: Tensor) -> Tensor:
    """The largest of all processes, entry by entry, without a gradient; one process gets its own."""
    return _reduced(values.detach(), dist.ReduceOp.MAX)


def smallest_over_ranks(values: Tensor) -> Tensor:
    """The smallest of all processes, entry by entry, without a gradient; one process gets its own."""
    return _reduced(values.detach(), dist.ReduceOp.MIN)


def at_once(reduce: Reduce, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Several tensors of one type, reduced in a single message: at least one, of any shapes."""
    tensors = list(tensors)
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def gather_over_ranks(values: list[Value]) -> list[Value]:
    """The values of all processes, one process after the other; anything that can be pickled."""
    parts = [values] * rank_and_world_size()[1]
    if _initialised():
        dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    reduced = values.clone()
    if _initialised():
        dist.all_reduce(reduced, operation)
    return reduced


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


class Ranks(NamedTuple):
    """How a loss brings its constants together with those of other processes; these have to call it together."""

    mean: Reduce
    largest: Reduce


ALONE = Ranks(mean=Tensor.detach, largest=Tensor.detach)
"""Each process by itself."""

ALL_RANKS = Ranks(mean=mean_over_ranks, largest=largest_over_ranks)
"""All processes of the run."""
