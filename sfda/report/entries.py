"""What a report knows of its runs: one entry per experiment, with all its seeds. Needs no torch."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfda.errors import UserError
from sfda.judging.bootstrap import Interval, mean_iou, paired_interval
from sfda.progress import Advance, ShowProgress, no_progress
from sfda.runs.image_records import Records, Values, read_records
from sfda.runs.run import Row, Run

if TYPE_CHECKING:
    from sfda.judging.verdict import Verdict


@dataclass(frozen=True)
class Entry:
    """An experiment.

    Attributes:
        name: As tables call it.
        runs: Its runs, one per seed.
        rows: Their rows, in the same order.
        records: What they kept of their images, where they did.
        verdict: What `sfda judge` thinks of it, on the images of this report.
    """

    name: str
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    records: tuple[Records, ...]
    verdict: Verdict | None = None

    @property
    def selection(self) -> dict[str, Any]:
        """``selection.json`` of its first run; empty where there is none."""
        return self.runs[0].selection() if self.runs else {}

    def mean(self, column: str) -> float | None:
        """Mean of a number over the seeds; None where no run has it."""
        values = self._values(column)
        return statistics.fmean(values) if values else None

    def deviation(self, column: str) -> float | None:
        """Standard deviation over the seeds; None for one."""
        values = self._values(column)
        return statistics.stdev(values) if len(values) > 1 else None

    def word(self, column: str) -> str:
        """What the runs say in a column of words, each once."""
        words = dict.fromkeys(str(row[column]) for row in self.rows if row.get(column) is not None)
        return ", ".join(words)

    def _values(self, column: str) -> list[float]:
        found = (row.get(column) for row in self.rows)
        return [float(value) for value in found if isinstance(value, int | float) and not math.isnan(value)]

    @cached_property
    def confusion(self) -> dict[str, Values]:
        """Image → confusion matrix, summed over the seeds that kept them; empty without labels."""
        known = [records for records in self.records if records.confusion is not None]
        total: dict[str, Values] = {}
        for records in known:
            assert records.confusion is not None
            for name, matrix in zip(records.names, records.confusion.astype(np.float64), strict=True):
                total[name] = total.get(name, 0) + matrix
        return total

    @cached_property
    def bins(self) -> Values | None:
        """Confidence bins (3, M), summed over the seeds."""
        known = [records.bins for records in self.records if records.bins is not None]
        return np.sum(known, axis=0) if known else None

    @property
    def iou(self) -> Values | None:
        """IoU per class, NaN for a class that does not occur: (C,)."""
        if not self.confusion:
            return None
        total = np.sum(list(self.confusion.values()), axis=0)
        hits = np.diagonal(total)
        union = total.sum(0) + total.sum(1) - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)

    @property
    def mass(self) -> Values | None:
        """Share of the pixels predicted as each class: (C,)."""
        if not self.records:
            return None
        total = np.sum([records.mass.sum(0) for records in self.records], axis=0)
        return np.asarray(total / total.sum(), dtype=np.float64)

    def interval(self, source: Entry) -> Interval | None:
        """How much higher its mIoU is than the source model's, over the images that both have."""
        names = [name for name in source.confusion if name in self.confusion]
        if self is source or len(names) < 2:
            return None
        before, after = (np.stack([each.confusion[name] for name in names]) for each in (source, self))
        return paired_interval(before, after)

    def image_iou(self, name: str) -> float:
        """The mIoU of one image."""
        return float(mean_iou(self.confusion[name]))


@dataclass(frozen=True)
class Findings:
    """All entries of a report.

    Attributes:
        entries: In the order in which they were given.
        source: The source model as it is, or None.
        classes: Names and colours of the scored classes; empty where no run kept records.
        command: What made all of them at once, where one command did.
    """

    entries: tuple[Entry, ...]
    source: Entry | None
    classes: dict[str, tuple[int, int, int]]
    command: str = ""


def gather(folders: Iterable[Path], show_progress: ShowProgress = no_progress) -> Findings:
    """Read run folders, or folders that hold some at any depth.

    Args:
        folders: The folders.
        show_progress: Shows how far the reading is.

    Raises:
        UserError: there is no scored run, or the runs score other classes.
    """
    runs = [run for folder in folders for run in _runs(folder)]
    if not runs:
        raise UserError("no run with scores was found: score runs with `sfda validate --run FOLDER` first")
    sets = sorted({str(run.row()["class_set"]) for run in runs})
    if len(sets) > 1:
        raise UserError(f"the runs score other classes ({', '.join(sets)}): make a report of each")
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(str(run.row()["experiment"]), []).append(run)
    with show_progress("reading runs", len(runs)) as advance:
        entries = tuple(_entry(name, group, advance) for name, group in by_name.items())
    classes = next((entry.records[0].classes for entry in entries if entry.records), {})
    return Findings(entries, _source(entries), classes)


def _runs(folder: Path) -> list[Run]:
    """Those of a comparison in its order, any others by their path."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give run folders, or a folder that holds some")
    compared = folder / "results.json"
    if compared.is_file():
        found = [Path(row["config"]).parent for row in json.loads(compared.read_text(encoding="utf-8"))]
        found = [run if run.is_dir() else folder / run.parent.name / run.name for run in found]
    else:
        found = sorted(path.parent for path in folder.rglob("result.json"))
    return [run for run in map(Run, found) if run.is_scored]


def _entry(name: str, runs: Sequence[Run], advance: Advance) -> Entry:
    found = []
    for run in runs:
        found.append(read_records(run.folder))
        advance(1)
    rows = tuple(run.row() for run in runs)
    return Entry(name, tuple(runs), rows, tuple(records for records in found if records is not None))


def _source(entries: Sequence[Entry]) -> Entry | None:
    candidates = [entry for entry in entries if entry.rows[0]["method"] == "SourceOnly"]
    plain = [entry for entry in candidates if entry.rows[0]["views"] == "single"]
    return next(iter(plain or candidates), None)
