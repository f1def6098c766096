"""The table of a comparison: for the terminal, and as flat rows for everything else."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from sfda.files import write_json, write_whole

Row = Mapping[str, object]

_SCORES = (
    ("mIoU\n%", "target_miou", 100, 1),
    ("ECE\n%", "target_ece", 100, 1),
    ("class\nECE %", "target_classwise_ece", 100, 1),
    ("source\nmIoU %", "source_miou", 100, 1),
    ("fit\ns", "adapt_seconds", 1, 0),
)


def as_table(rows: Sequence[Row]) -> Table:
    """One line an experiment: mean, and ± standard deviation where there are several seeds."""
    experiments = list(dict.fromkeys(str(row["experiment"]) for row in rows))
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    table = Table(
        title=f"{first['source'] or 'no source'} → {first['target']}\n{first['class_set']}, "
        + (f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"),
        caption="mIoU and ECE on the target's validation set, mIoU on the source's, seconds of the fit",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # In a narrow terminal long names go on in a second line; no number is broken.
    table.add_column("experiment", overflow="fold", min_width=16, vertical="bottom")
    for heading in ("source-\nfree", "labels\nread"):
        table.add_column(heading, no_wrap=True, vertical="bottom")
    scores = [*_SCORES]
    if any("target_miou13" in row for row in rows):
        scores.insert(1, ("mIoU13\n%", "target_miou13", 100, 1))
    for heading, *_ in scores:
        table.add_column(heading, justify="right", min_width=5 if "%" in heading else 3, vertical="bottom")
    for experiment in experiments:
        group = [row for row in rows if row["experiment"] == experiment]
        row = group[0]
        table.add_row(
            experiment,
            "yes" if row["source_free"] else "no",
            str(row["labels_read"] or "none"),
            *(_cell([member.get(key) for member in group], factor, digits) for _, key, factor, digits in scores),
        )
    return table


def as_sentence(row: Row) -> str:
    """The scores of one row."""
    shown = [
        f"{heading.replace(chr(10), ' ').removesuffix(' %')} {_cell([row.get(key)], factor, digits)} %"
        for heading, key, factor, digits in _SCORES[:2]
    ]
    return ", ".join(shown)


def _cell(values: Sequence[object], factor: float, digits: int) -> str:
    numbers = [value * factor for value in values if isinstance(value, int | float)]
    if not numbers:
        return "–"
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean}\n±{statistics.stdev(numbers):.{digits}f}"


def write_results(rows: Sequence[Row], out: Path) -> None:
    """``results.json`` and ``results.csv``: flat rows, one an experiment and seed; null where there is none."""
    write_json(out / "results.json", rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / "results.csv", file.getvalue().encode())
