"""Ours and a named reference in turns, in one run, and the one table that all of them make."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

ROUNDS = 5


@dataclass(frozen=True)
class Where:
    """What is measured on: one thread of a CPU, or a GPU.

    Attributes:
        device: ``cpu`` or ``cuda``.
        network: Network string of the rows that need a network.
        bf16: Whether networks run under bfloat16 autocast.
        size: (height, width) of the images that networks are given.
        batch: How many they are given.
    """

    device: str = "cpu"
    network: str = "smp:DeepLabV3Plus/mobilenet_v2"
    bf16: bool = False
    size: tuple[int, int] = (96, 192)
    batch: int = 4

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.size[0]}x{self.size[1]}"
        return f"{self.network.rpartition(':')[2]} {shape}{' bf16' if self.bf16 else ''}"

    def autocast(self) -> torch.autocast:
        """The precision of the networks."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Row:
    """One ratio: `faster` is how many times as much the reference takes, `cost` how many times as much we take.

    Attributes:
        what: What of ours is measured, with its sizes.
        reference: What it stands beside.
        ours: Median of ours, in `unit`.
        theirs: Median of the reference.
        ratio: Median over the rounds, or of one comparison.
        aim: At least so much where it is to be faster, at most where it is a cost.
    """

    what: str
    reference: str
    ours: float
    theirs: float
    ratio: float
    aim: float
    kind: Literal["faster", "cost"] = "faster"
    unit: str = "ms"

    @property
    def is_met(self) -> bool:
        """Whether the ratio is what is aimed at."""
        return self.ratio >= self.aim if self.kind == "faster" else self.ratio <= self.aim


def faster(
    what: str, ours: Callable[[], object], reference: str, theirs: Callable[[], object], aim: float, where: Where
) -> Row:
    """A row for what ought to be `aim` times as fast as the reference."""
    mine, other, ratios = in_turns(ours, theirs, where)
    return Row(what, reference, mine, other, statistics.median(ratios), aim)


def cost(
    what: str, ours: Callable[[], object], reference: str, theirs: Callable[[], object], aim: float, where: Where
) -> Row:
    """A row for what may take at most `aim` times as long as the reference, which it does more than."""
    mine, other, ratios = in_turns(ours, theirs, where)
    return Row(what, reference, mine, other, statistics.median(1 / ratio for ratio in ratios), aim, "cost")


def in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], where: Where, rounds: int = ROUNDS
) -> tuple[float, float, list[float]]:
    """Median milliseconds of both, and reference / ours in every round, after one call of each to warm up.

    Both are called in every round, in changing order, so that what else the machine does meets both alike.
    """
    calls = (ours, theirs)
    for call in calls:
        call()
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            where.wait()
            start = time.perf_counter()
            calls[index]()
            where.wait()
            times[index].append(1e3 * (time.perf_counter() - start))
    ratios = [other / mine for mine, other in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), ratios


def print_table(rows: Iterable[Row], title: str, console: Console) -> int:
    """The table, and how many rows are met; the exit status: 0 when all are."""
    rows = list(rows)
    table = Table("ours", "reference", title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("ours", "reference", "ratio", "aim"):
        table.add_column(name, justify="right")
    table.add_column("met")
    for row in rows:
        sign = "≥" if row.kind == "faster" else "≤"
        digits = 1 if row.kind == "faster" else 2
        table.add_row(
            row.what,
            row.reference,
            f"{row.ours:.1f} {row.unit}",
            f"{row.theirs:.1f} {row.unit}",
            f"{row.ratio:.{digits}f}x",
            f"{sign} {row.aim:g}x",
            "yes" if row.is_met else "NO",
        )
    console.print(table)
    met = sum(row.is_met for row in rows)
    console.print(f"{met} of {len(rows)} rows are met")
    return int(met < len(rows))
