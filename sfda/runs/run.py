"""A run folder: what lies in it, and what it says."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfda.errors import UserError
from sfda.files import read_json, write_json
from sfda.runs.experiment import data_options
from sfda.yaml_files import read_mapping

Row = dict[str, Any]
Settings = Mapping[str, Any]


class Run:
    """A run folder.

    Attributes:
        folder: Its path.
        config_file: The whole configuration without what belongs to one call.
        last: The checkpoint that a fit is resumed from.
        selected: The checkpoint that the run is represented by.
        row_file: The run's row in every table.
        settings_file: What the engine was asked for when it began the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "config.yaml"
        self.last = folder / "last.ckpt"
        self.selected = folder / "selected.ckpt"
        self.row_file = folder / "result.json"
        self.settings_file = folder / "settings.json"

    # ------------------------------------------------------------------ how far it is

    @property
    def is_finished(self) -> bool:
        """Whether there is a result."""
        return self.row_file.is_file()

    @property
    def is_resumable(self) -> bool:
        """Whether a fit can go on from a checkpoint."""
        return self.last.is_file()

    @property
    def is_scored(self) -> bool:
        """Whether the result has scores of the target."""
        return self.is_finished and self.row().get("target_entropy") is not None

    # ------------------------------------------------------------------ what it says

    def row(self) -> Row:
        """The run's row: facts and scores by name; empty before the run is finished."""
        return read_json(self.row_file) if self.is_finished else {}

    def write_row(self, row: Row) -> None:
        """Write the row."""
        write_json(self.row_file, row)

    def config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            UserError: this is no run folder.
        """
        if not self.config_file.is_file():
            raise UserError(f"--run {self.folder}: not a run folder, it has no {self.config_file.name}")
        return read_mapping(self.config_file)

    def model(self) -> dict[str, Any]:
        """The class path of its method under ``class``, then the method's options.

        Raises:
            UserError: this is no run folder, or it names no model.
        """
        model: Any = self.config().get("model")
        options = model.get("init_args") if isinstance(model, dict) else None
        if not isinstance(options, dict) or not isinstance(model.get("class_path"), str):
            raise UserError(
                f"{self.config_file}: names no `model` with class_path and init_args; give a run folder that `sfda` "
                "wrote"
            )
        return {"class": model["class_path"], **options}

    def data(self) -> dict[str, Any]:
        """The options of its DataModule.

        Raises:
            UserError: this is no run folder, or it says nothing about data.
        """
        return data_options(self.config_file, self.config())

    def selection(self) -> dict[str, Any]:
        """``selection.json``: what was chosen by which selectors, and the verdict; empty where there is none."""
        path = self.folder / "selection.json"
        return read_json(path) if path.is_file() else {}

    def scores(self) -> dict[str, float]:
        """Scores of the fit's validations by name: of the epoch in ``selection.json``, otherwise the last ones.

        A source-free fit reads no target label, so that nothing here has seen one.
        """
        selected = self.selection().get("selected")
        scores: dict[str, float] = {}
        for row in self._metrics():
            if selected is None or row.get("epoch") == str(selected["epoch"]):
                scores |= {name: float(value) for name, value in row.items() if _is_score(name) and value}
        return scores

    def _metrics(self) -> list[dict[str, str]]:
        """All that was logged, in order; ``metrics.0.csv``, … are from before the fit was resumed."""
        earlier = sorted(self.folder.glob("metrics.*.csv"), key=lambda path: int(path.suffixes[0][1:]))
        rows: list[dict[str, str]] = []
        for path in (*earlier, self.folder / "metrics.csv"):
            if path.is_file():
                with path.open(newline="", encoding="utf-8") as file:
                    rows += csv.DictReader(file)
        return rows

    # ------------------------------------------------------------------ whose it is

    def check(self, settings: Settings) -> None:
        """Compare settings with those that the run was begun with; a run without weights may still become any.

        A run that an older version began, or a user, has no ``settings.json``: its ``config.yaml`` is looked at.

        Raises:
            UserError: they differ.
        """
        if not (self.is_finished or self.is_resumable):
            return
        if self.settings_file.is_file():
            stored = read_json(self.settings_file)
            differing = _first_difference(stored, settings) or _first_difference(settings, stored)
        else:
            differing = _first_difference(settings["config"], self.config())
        if differing is not None:
            raise UserError(
                f"{self.folder} was run with other settings than the configs have now, the first being {differing}: "
                "give another --out, or move that folder away to run it again"
            )

    def claim(self, settings: Settings) -> None:
        """Say whose the folder is, before anything else is in it."""
        write_json(self.settings_file, settings)


def _first_difference(wanted: Any, found: Any, name: str = "") -> str | None:
    """Dotted name of the first value in `wanted` that is another one, or missing, in `found`; None where all agree."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        pairs = [(value, found.get(key), f"{name}.{key}".lstrip(".")) for key, value in wanted.items()]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = [(*pair, name) for pair in zip(wanted, found, strict=True)]
    else:
        below_out = isinstance(wanted, str) and wanted.startswith("/") and str(found).endswith(wanted)
        return None if wanted == found or below_out else name
    return next((different for pair in pairs if (different := _first_difference(*pair)) is not None), None)


def _is_score(name: str) -> bool:
    return "/" in name and not name.startswith("train/")
