"""Weights & Biases: one W&B run for each run folder, with everything that is worth looking at."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.callbacks.run_folder import git_commit
from sfda.runs.run import Run

UNSETTLED = "."
"""Lightning's default of ``save_dir``."""


def settle_wandb_loggers(loggers: Any, folder: Path, *, goes_on: bool) -> None:
    """Fill in what makes a ``WandbLogger`` that of one run folder: where it writes, its name and its id.

    The id is kept in the run's ``config.yaml``: a resumed fit and ``sfda validate --run`` go on in the same W&B run,
    while a config that is used again for another folder gets a W&B run of its own. Without ``WANDB_MODE`` in the
    environment W&B stays offline, but for the agents of its sweeps, which it has to hear from.

    Args:
        loggers: What the command line has under ``trainer.logger``: options of loggers, not yet instantiated.
        folder: The run folder.
        goes_on: Whether this is the run whose ``config.yaml`` is read.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not (isinstance(logger, Namespace) and logger.class_path.endswith(".WandbLogger")):
            continue
        if "WANDB_SWEEP_ID" not in os.environ:
            os.environ.setdefault("WANDB_MODE", "offline")
        options = logger.init_args
        of_another_run = options.save_dir != UNSETTLED and not goes_on
        if options.id is None or of_another_run:
            # The letter in front: YAML would take 12e34567 for a number.
            options.id = os.environ.get("WANDB_RUN_ID") or f"r{uuid.uuid4().hex[:8]}"
        if options.name is None or of_another_run:
            options.name = "/".join(folder.parts[-2:])
        options.save_dir = str(folder)
        if options.get("resume", "allow") is None:
            options.resume = "allow"


class WandbRun(MethodCallback):
    """Gives W&B what stands beside the metrics, and ends its run with ours.

    The whole ``config.yaml`` and the commit of the code as configuration; the pictures of the run folder (what the
    method draws, and after ``sfda validate`` predictions and reliability diagrams); after a fit the scores of the
    checkpoint that was selected as summary, so that a sweep judges what the run keeps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for logger in _wandb_loggers(trainer):
            config = yaml.safe_load(Run(self.folder).config_file.read_text(encoding="utf-8"))
            logger.log_hyperparams({**config, "git_commit": git_commit()})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The scores of `sfda validate` stand where the fit was when the checkpoint was written, not at its start."""
        if trainer.state.fn == "validate" and any(_wandb_loggers(trainer)):
            pl_module.log("step", float(self._step(trainer)), rank_zero_only=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Log pictures and selected scores, and finish: a next run of this process is another W&B run."""
        for logger in _wandb_loggers(trainer):
            for picture in sorted(self.folder.glob("*.png")):
                logger.log_image(f"pictures/{picture.stem}", [str(picture)], step=self._step(trainer))
            if stage == "fit":
                logger.experiment.summary.update({**Run(self.folder).scores(), **self._outcome()})
            logger.finalize("success")  # uploads checkpoints where the logger is told to
            logger.experiment.finish()

    def _outcome(self) -> dict[str, object]:
        """What was selected, by which selector each, and the verdict."""
        run = Run(self.folder)
        row = run.row()
        found = {name: row[name] for name in ("selected_by", "selected_step", "verdict") if row.get(name) is not None}
        reports = run.selection()
        chosen = {
            report["selected_by"]: report["selected"]
            for report in (reports, *reports.get("others", ()))
            if report.get("selected")
        }
        return found | {f"selectors/{score}": selected["step"] for score, selected in chosen.items()}

    def _step(self, trainer: L.Trainer) -> int:
        """Optimizer steps that the weights have taken."""
        return self.method.loaded_step if trainer.state.fn == "validate" else trainer.global_step

    @override
    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        if any(_wandb_loggers(trainer)):
            import wandb

            if wandb.run is not None:  # None: it failed before W&B had begun
                wandb.run.finish(exit_code=1)


def _wandb_loggers(trainer: L.Trainer) -> Iterator[WandbLogger]:
    """On the first process, which alone has a W&B run."""
    if trainer.is_global_zero:
        yield from (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))
