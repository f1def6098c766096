"""The table of a sweep: the best trial first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from sfda.files import write_json
from sfda.sweep.plan import Sweep

Row = Mapping[str, Any]
GUARDS = ("target/class_coverage", "target/churn")
"""What stands beside every objective: a score can be good because everything has collapsed into one class."""


def ranked(sweep: Sweep, rows: Sequence[Row]) -> list[Row]:
    """The best first; behind them what has no value, then what failed."""
    judged = [row for row in rows if row["value"] is not None]
    rest = [row for row in rows if row["value"] is None]
    return sorted(judged, key=lambda row: float(row["value"]), reverse=sweep.maximised) + sorted(
        rest, key=lambda row: row["status"] == "failed"
    )


def as_table(sweep: Sweep, rows: Sequence[Row]) -> Table:
    """One line a trial, by the objective."""
    guards = [guard for guard in GUARDS if guard != sweep.metric and any(guard in row["scores"] for row in rows)]
    direction = "largest" if sweep.maximised else "smallest"
    table = Table(
        title=f"{sweep.name}: {direction} {sweep.metric} first",
        caption="seconds of the fit; `sfda validate --run FOLDER/trial-N` scores a trial with labels",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("trial", *(score.replace("/", "/\n") for score in (sweep.metric, *guards)), "fit\ns"):
        table.add_column(heading, justify="right")
    table.add_column("settings", overflow="fold")
    names = [parameter.name for parameter in sweep.parameters]
    for row in ranked(sweep, rows):
        table.add_row(
            str(row["trial"]),
            "failed" if row["status"] == "failed" else _number(row["value"], 4),
            *(_number(row["scores"].get(guard), 4) for guard in guards),
            _number(row["seconds"], 0),
            "  ".join(f"{_short(name, names)}={_value(row['parameters'][name])}" for name in names),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(name: str, names: Sequence[str]) -> str:
    """The last part of an option, unless another one ends in the same."""
    last = name.rpartition(".")[2]
    return name if sum(other.rpartition(".")[2] == last for other in names) > 1 else last


def write_results(rows: Sequence[Row], out: Path) -> None:
    """``results.json``: all trials in their order."""
    write_json(out / "results.json", rows)
