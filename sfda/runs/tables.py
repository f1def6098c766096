"""Tables of runs: of a comparison, for the terminal and as flat rows for everything else, and of a sweep."""

import csv
import io
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from sfda.errors import UserError, did_you_mean
from sfda.files import write_json, write_whole

Row = Mapping[str, Any]

# ---------------------------------------------------------------- columns

COLUMNS = (
    "target_miou",
    "target_miou13",
    "target_ece",
    "target_classwise_ece",
    "source_miou",
    "verdict",
    "adapt_seconds",
)
"""Columns of a comparison that names none; ``miou13`` and ``verdict`` only where a run has them."""
_SOMETIMES = ("target_miou13", "verdict")
_FACTS = (
    *("method", "network", "views", "class_set", "selected_by", "selected_step", "verdict"),
    *("adapt_seconds", "peak_memory_mb", "trained_parameters"),
)
"""Facts of a run that may be columns."""
_NAMES = {"miou": "mIoU", "ece": "ECE", "classwise_ece": "class ECE", "nll": "NLL", "brier": "Brier", "mce": "MCE"}
_PERCENT = re.compile(r"miou\d*|iou_.+|.*ece.*|mce|pixel_accuracy|confidence|class_coverage|churn|view_agreement")
"""Scores that are fractions, shown in percent."""


def check_columns(path: str, columns: Iterable[str]) -> None:
    """Refuse columns that no run can have.

    Raises:
        UserError: one is neither a score of a domain nor a fact of a run.
    """
    for column in columns:
        if not re.match(r"(target|source)_.", column) and column not in _FACTS:
            raise UserError(
                f"{path}: column {column}: a score such as target_miou or source_ece, or one of "
                f"{', '.join(_FACTS)}{did_you_mean(column, [*COLUMNS, *_FACTS])}"
            )


def unknown_columns(rows: Sequence[Row], columns: Iterable[str]) -> Iterator[str]:
    """A remark on every column that no run has, and on what it may have been meant to be."""
    known = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        if column not in known and column not in COLUMNS:
            yield f"column {column}: no run has such a score{did_you_mean(column, known)}"


def _column(name: str) -> tuple[str, float, int]:
    """Heading, factor and digits of a column."""
    if name in _FACTS:
        return "fit\ns" if name == "adapt_seconds" else name.replace("_", "\n"), 1, 0
    domain, _, score = name.partition("_")
    percent = " %" if _PERCENT.fullmatch(score) else ""
    heading = f"{_NAMES.get(score, re.sub('^miou', 'mIoU', score).replace('_', ' '))}{percent}"
    lines = f"source\n{heading}" if domain == "source" else heading.replace(" ", "\n", 1)
    return lines, *((100, 1) if percent else (1, 3))


# ---------------------------------------------------------------- comparison


def as_table(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> Table:
    """One line per experiment: mean, and ± standard deviation where there are several seeds."""
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    shown = [column for column in columns if column not in _SOMETIMES or any(row.get(column) for row in rows)]
    table = Table(
        title=f"{first['source'] or 'no source'} → {first['target']}\n{first['class_set']}, "
        + (f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"),
        caption="mIoU and ECE on the target's validation set, mIoU on the source's, seconds of the fit"
        if columns == COLUMNS
        else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # In a narrow terminal long names go on in a second line; no number is broken.
    table.add_column("experiment", overflow="fold", min_width=16, vertical="bottom")
    for heading in ("source-\nfree", "labels\nread"):
        table.add_column(heading, no_wrap=True, vertical="bottom")
    for heading, *_ in map(_column, shown):
        widest = len(heading) if heading == "verdict" else None  # two words, and all columns have 80 characters
        least = 5 if "%" in heading else 3
        table.add_column(heading, justify="right", min_width=least, max_width=widest, vertical="bottom")
    for experiment in dict.fromkeys(str(row["experiment"]) for row in rows):
        group = [row for row in rows if row["experiment"] == experiment]
        table.add_row(
            experiment,
            "yes" if group[0]["source_free"] else "no",
            str(group[0]["labels_read"] or "none"),
            *(_cell([member.get(column) for member in group], *_column(column)[1:]) for column in shown),
        )
    return table


def as_sentence(row: Row) -> str:
    """The first scores of one row."""
    scores = (("mIoU", "target_miou"), ("ECE", "target_ece"))
    return ", ".join(f"{name} {_cell([row.get(column)], *_column(column)[1:])} %" for name, column in scores)


def _cell(values: Sequence[object], factor: float, digits: int) -> str:
    numbers = [value * factor for value in values if isinstance(value, int | float)]
    if not numbers:
        words = Counter(value for value in values if isinstance(value, str))
        return "\n".join(f"{word} ({count}x)" if len(words) > 1 else word for word, count in words.items()) or "–"
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean}\n±{statistics.stdev(numbers):.{digits}f}"


def write_results(rows: Sequence[Row], out: Path) -> None:
    """``results.json`` and ``results.csv``: flat rows, one per experiment and seed; null where there is none."""
    write_json(out / "results.json", rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / "results.csv", file.getvalue().encode())


# ---------------------------------------------------------------- sweep

GUARDS = ("target/class_coverage", "target/churn")
"""What stands beside every objective: a score can be good because everything has collapsed into one class."""


def ranked(rows: Sequence[Row], *, maximised: bool) -> list[Row]:
    """The best first; after them what has no value, then what failed."""
    judged = [row for row in rows if row["value"] is not None]
    rest = [row for row in rows if row["value"] is None]
    return sorted(judged, key=lambda row: float(row["value"]), reverse=maximised) + sorted(
        rest, key=lambda row: bool(row["status"] == "failed")
    )


def as_ranking(name: str, rows: Sequence[Row], parameters: Sequence[str], *, maximised: bool) -> Table:
    """One line per trial, by the objective.

    Args:
        name: Name of the sweep.
        rows: One per trial: ``trial``, ``status``, ``objective`` and its ``value``, ``scores``, ``seconds`` and
            ``parameters``.
        parameters: Names of the parameters.
        maximised: Whether a large value is good.
    """
    objective = rows[0]["objective"]
    guards = [guard for guard in GUARDS if guard != objective and any(guard in row["scores"] for row in rows)]
    table = Table(
        title=f"{name}: {'largest' if maximised else 'smallest'} {objective} first",
        caption="seconds of the fit; `sfda validate --run FOLDER/trial-N` scores a trial with labels",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("trial", *(score.replace("/", "/\n") for score in (objective, *guards)), "fit\ns"):
        table.add_column(heading, justify="right")
    table.add_column("settings", overflow="fold")
    for row in ranked(rows, maximised=maximised):
        table.add_row(
            str(row["trial"]),
            "failed" if row["status"] == "failed" else _cell([row["value"]], 1, 4),
            *(_cell([row["scores"].get(guard)], 1, 4) for guard in guards),
            _cell([row["seconds"]], 1, 0),
            "  ".join(f"{_short(name, parameters)}={_value(row['parameters'][name])}" for name in parameters),
        )
    return table


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(name: str, names: Sequence[str]) -> str:
    """The last part of an option, unless another one ends in the same."""
    last = name.rpartition(".")[2]
    return name if sum(other.rpartition(".")[2] == last for other in names) > 1 else last
