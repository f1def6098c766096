"""What a run is judged by: the scores that its fit has seen of the checkpoint that it kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def scores_of_run(folder: Path) -> dict[str, float]:
    """Validation scores in ``metrics.csv``, by name: of the epoch in ``selection.json``, otherwise the last ones.

    A source-free fit reads no target label, so that nothing here has seen one.
    """
    selection = folder / "selection.json"
    selected = json.loads(selection.read_text(encoding="utf-8"))["selected"] if selection.is_file() else None
    scores: dict[str, float] = {}
    for row in _rows(folder):
        if selected is None or row.get("epoch") == str(selected["epoch"]):
            scores |= {name: float(value) for name, value in row.items() if _is_score(name) and value}
    return scores


def _rows(folder: Path) -> list[dict[str, str]]:
    """All that was logged, in order; ``metrics.0.csv``, … are from before the fit was resumed."""
    earlier = sorted(folder.glob("metrics.*.csv"), key=lambda path: int(path.suffixes[0][1:]))
    rows: list[dict[str, str]] = []
    for path in (*earlier, folder / "metrics.csv"):
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows += csv.DictReader(file)
    return rows


def _is_score(name: str) -> bool:
    return "/" in name and not name.startswith("train/")
