"""What a run leaves behind: checkpoints and one row of results."""

import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from sfda import __version__
from sfda.callbacks.fit_verdict import is_replaced, judge_fit
from sfda.callbacks.interpolation import keep_share
from sfda.callbacks.method_callback import MethodCallback
from sfda.callbacks.selection import selectors_of
from sfda.errors import UserError
from sfda.files import write_whole, writing
from sfda.methods.kinds.trained import count_trained
from sfda.metrics.scoring import Scores, score_names
from sfda.progress import write_line
from sfda.runs.checkpoints import write_checkpoint
from sfda.runs.run import Run

FIT_FACTS = ("selected_by", "selected_step", "verdict", "adapt_seconds", "peak_memory_mb", "git_commit")
"""What scoring a run leaves as the fit wrote it."""
SHOWN = (("miou", "mIoU", 100, 1, " %"), ("ece", "ECE", 100, 1, " %"), ("entropy", "entropy", 1, 3, " nats"))


def last_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keeps ``last.ckpt``, written at every epoch's end, where a run can be resumed."""
    return ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints whole or not at all: where the disk is full, the one before stays as it was."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, *_: Any, **__: Any) -> None:
        write_checkpoint(Path(path), checkpoint)


class MetricsFile(CSVLogger):
    """``metrics.csv`` and ``hparams.yaml``, named where they cannot be written."""

    @override
    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        with writing(Path(self.log_dir, "hparams.yaml")):
            super().log_hyperparams(*arguments, **options)

    @override
    def save(self) -> None:
        with writing(Path(self.log_dir, "metrics.csv")):
            super().save()


class RunFolder(MethodCallback):
    """Writes ``selected.ckpt`` when a fit ends, and ``result.json``, the run's row in every table."""

    def __init__(self, run: Run, experiment: str, seed: int) -> None:
        self.run = run
        self.experiment = experiment
        self.seed = seed
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._started = time.perf_counter()  # networks are made, nothing is labelled or trained yet
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the chosen checkpoint and write the row, its scores still empty.

        Raises:
            UserError: the fit ended before it had changed anything.
        """
        if getattr(trainer, "fast_dev_run", False):
            return
        if not self.method.fit_is_complete:
            raise UserError(f"the fit of {type(pl_module).__name__} ended before its work was done: there is no result")
        seconds = self._seconds()
        chosen, selected_by, step = self.run.last, "last", trainer.global_step
        if step == 0:  # no optimizer ever stepped: ModelCheckpoint has written nothing
            trainer.save_checkpoint(chosen)
        for selector in selectors_of(trainer)[:1]:
            if selector.selected is not None and selector.best_model_path:
                chosen, selected_by = Path(selector.best_model_path), selector.score
                step = selector.selected["step"]
        if trainer.is_global_zero:
            _link(chosen, self.run.selected)
            why = "the last one, no selector is at work" if selected_by == "last" else f"selected by {selected_by}"
            write_line(f"{self.run.selected}: step {step}, {why}")
            keep_share(trainer, self.method, self.run)
            self._finish({"selected_by": selected_by, "selected_step": step, "adapt_seconds": round(seconds, 2)})
        trainer.strategy.barrier()

    def _finish(self, facts: dict[str, Any]) -> None:
        """Judge the fit, and write its row: last, since a run with a row is finished."""
        verdict = judge_fit(self.method, self.run)
        if verdict is not None:
            facts["verdict"] = verdict.word
            write_line(f"{self.run.folder}: {verdict}")
        if is_replaced(self.method, verdict):
            facts |= {"selected_by": "verdict", "selected_step": 0}
            write_line(f"{self.run.selected} is the source model; {self.run.last} is what was trained")
        self.run.write_row(self._row({}) | facts | {"peak_memory_mb": peak_memory_mb()})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill in the scores after `sfda validate`, and keep what was scored beside them."""
        if trainer.state.fn != "validate" or getattr(trainer, "fast_dev_run", False):
            return
        if trainer.ckpt_path is None:
            trainer.save_checkpoint(self.run.selected, weights_only=True)
        if not trainer.is_global_zero:
            return
        fitted = self.run
        if trainer.ckpt_path is not None and not self.run.selected.exists():
            _link(Path(trainer.ckpt_path), self.run.selected)
            fitted = Run(Path(trainer.ckpt_path).parent)
        facts = {key: value for key, value in fitted.row().items() if key in FIT_FACTS}
        self.run.write_row(self._row(self.method.results) | facts)
        for domain, scores in self.method.results.items():
            shown = [
                f"{text} {factor * scores[name]:.{digits}f}{unit}"
                for name, text, factor, digits, unit in SHOWN
                if name in scores
            ]
            write_line(f"{domain}: {', '.join(shown)}")
        write_line(f"all scores and pictures are in {self.run.folder}")

    def _row(self, results: Mapping[str, Scores]) -> dict[str, Any]:
        method, data = self.method, self.method.datamodule
        domains = {str(name): domain.root if domain else None for name, domain in data.domains.items()}
        return {
            "experiment": self.experiment,
            "method": type(method).__name__,
            "seed": self.seed,
            **domains,
            "class_set": data.score_classes.name,
            "views": method.views,
            "network": method.hparams["network"],
            "source_free": method.has_read.source_free,
            "labels_read": method.has_read.labels_read,
            "selected_by": None,
            "selected_step": None,
            "verdict": None,
            **_scores(score_names(method.make_metrics(data.score_classes, True)), results),
            "adapt_seconds": None,
            "peak_memory_mb": None,
            "trained_parameters": count_trained(method),
            "version": __version__,
            "git_commit": git_commit(),
            "config": str(self.run.config_file),
        }


def _scores(names: Sequence[str], results: Mapping[str, Scores]) -> dict[str, float | None]:
    """`names` and all further scores as ``<domain>_<name>``; None where one is NaN, or was not computed."""
    row: dict[str, float | None] = {}
    for domain in ("target", "source"):
        scores = {**dict.fromkeys(names, math.nan), **results.get(domain, {})}
        row |= {f"{domain}_{name}": None if math.isnan(value) else value for name, value in scores.items()}
    return row


def peak_memory_mb() -> float:
    """CUDA's peak allocation in MiB; without a GPU the peak resident memory of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / (2**20 if sys.platform == "darwin" else 2**10), 1)


def git_commit() -> str | None:
    """Commit of the code that runs, marked ``-dirty`` where it differs; None outside a checkout."""
    file = Path(__file__).resolve()

    def git(*command: str) -> str:
        words = ["git", "-C", str(file.parent), *command]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an environment may lie in somebody else's checkout
        return git("describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _link(existing: Path, path: Path) -> None:
    """Make `path` another name of a file; a copy where the file system knows no links."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(existing, temporary)
        temporary.replace(path)
    except OSError:
        write_whole(path, existing.read_bytes())
