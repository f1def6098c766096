"""A training step of DA-Cal, virtual step and temperatures included, against that of its mean teacher: time, memory."""

import gc
from collections.abc import Iterator

import torch

from bench_training_step import Step, make_method
from memory import alone, peak_mb
from sfda.methods.da_cal import DACal
from sfda.methods.mean_teacher import MeanTeacher
from side_by_side import Row, Where, cost

NEEDS_NETWORK, ON_GPU = True, True


def make_step(kind: str, where: Where) -> Step:
    method = make_method(DACal, where) if kind == "DACal" else make_method(MeanTeacher, where, labels="soft")
    return Step(method, where)


def memory_of(kind: str, where: Where) -> float:
    """By how many MB steps raise the peak memory, the networks being there."""
    torch.set_num_threads(1)
    if where.device == "cuda":
        step = make_step(kind, where)
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.whole()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    method = make_method(DACal, where) if kind == "DACal" else make_method(MeanTeacher, where, labels="soft")
    before = peak_mb()
    step = Step(method, where)
    step.whole()
    return peak_mb() - before


def rows(where: Where) -> Iterator[Row]:
    ours, theirs = make_step("DACal", where), make_step("MeanTeacher", where)
    name = f"DA-Cal step, {where}"
    yield cost(name, ours.whole, "MeanTeacher step, soft labels", theirs.whole, 1.5, where)
    mine, other = (
        (memory_of if where.device == "cuda" else lambda *arguments: alone(memory_of, *arguments))(kind, where)
        for kind in ("DACal", "MeanTeacher")
    )
    yield Row(f"memory of a {name}", "MeanTeacher step, soft labels", mine, other, mine / other, 1.35, "cost", "MB")
