"""What a run leaves behind: checkpoints and one row of results."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from sfda.data.label_spaces import SYNTHIA16
from sfda.methods.base import Method
from sfda.methods.trained import count_trained

SCORES = ("miou", "ece", "classwise_ece", "nll", "brier", "entropy")


def last_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keeps ``last.ckpt``, written at every epoch's end, where a run can be resumed."""
    return ModelCheckpoint(
        dirpath=folder, save_top_k=0, save_last=True, save_on_train_epoch_end=True, enable_version_counter=False
    )


class RunFolder(Callback):
    """Writes ``selected.ckpt`` when a fit ends, and ``result.json``, the run's row in every table.

    Args:
        folder: The run folder.
        experiment: Name of the experiment.
        seed: Seed of the run.
    """

    def __init__(self, folder: Path, experiment: str, seed: int) -> None:
        self.folder = folder
        self.experiment = experiment
        self.seed = seed
        self._started = 0.0

    @property
    def row_path(self) -> Path:
        """Where the row is kept."""
        return self.folder / "result.json"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; loaders and networks are made, nothing is trained yet."""
        self._started = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the chosen checkpoint and write the row, its scores still empty."""
        seconds = time.perf_counter() - self._started
        last = self.folder / "last.ckpt"
        if trainer.global_step == 0:  # no optimizer ever stepped: ModelCheckpoint has written nothing
            trainer.save_checkpoint(last)
        if trainer.is_global_zero:
            _link(last, self.folder / "selected.ckpt")
            assert isinstance(pl_module, Method)
            facts = {
                "selected_by": "last",
                "selected_step": trainer.global_step,
                "adapt_seconds": round(seconds, 2),
                "peak_memory_mb": peak_memory_mb(),
                "trained_parameters": count_trained(pl_module),
            }
            _write_json(self.row_path, {**self._describe(pl_module), **facts})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill in the scores after `sfda validate`."""
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Method)
        row = json.loads(self.row_path.read_text()) if self.row_path.exists() else self._describe(pl_module)
        _write_json(self.row_path, {**row, **_scores(pl_module)})

    def _describe(self, method: Method) -> dict[str, Any]:
        data = method.datamodule
        domains = {name: domain.root if domain else None for name, domain in data.domains.items()}
        labels = sorted(read.removesuffix("_labels") for read in method.reads if read.endswith("_labels"))
        empty = dict.fromkeys(
            ("selected_by", "selected_step", "adapt_seconds", "peak_memory_mb"),
        )
        return {
            "experiment": self.experiment,
            "method": type(method).__name__,
            "seed": self.seed,
            **domains,
            "class_set": data.score_classes.name,
            "views": method.views,
            "network": method.hparams["network"],
            "source_free": not any(read.startswith("source_") for read in method.reads),
            "labels_read": "+".join(labels) or None,
            **empty,
            "trained_parameters": 0,
            "git_commit": git_commit(),
            "config": str(self.folder / "config.yaml"),
        }


def _scores(method: Method) -> dict[str, Any]:
    target = method.results.get("target", {})
    source = method.results.get("source", {})
    classes = method.datamodule.score_classes
    row = {f"target_{score}": _finite(target.get(score)) for score in SCORES}
    if classes == SYNTHIA16:
        row["target_miou13"] = _finite(target.get("miou13"))
    row |= {f"target_iou_{name}": _finite(target.get(f"iou_{name}")) for name in classes.names}
    row |= {f"source_{score}": _finite(source.get(score)) for score in ("miou", "ece")}
    return row


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else value


def peak_memory_mb() -> float:
    """CUDA's peak allocation in MiB; without a GPU the peak resident memory of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / (2**20 if sys.platform == "darwin" else 2**10), 1)


def git_commit() -> str | None:
    """Commit of the code that runs, marked ``-dirty`` where it differs; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _link(existing: Path, path: Path) -> None:
    """Make `path` another name of a file; a copy where the file system knows no links."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(existing, temporary)
    except OSError:
        shutil.copyfile(existing, temporary)
    temporary.replace(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
