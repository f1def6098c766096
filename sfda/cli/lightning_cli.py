"""LightningCLI for ``sfda fit`` and ``sfda validate``: any method, any DataModule, a run folder of its own."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch.distributed as dist
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessException
from typing_extensions import override

from sfda.callbacks.collapse_guard import CollapseGuard
from sfda.callbacks.image_records import ImageRecords
from sfda.callbacks.interpolation import Interpolation
from sfda.callbacks.pictures import Pictures
from sfda.callbacks.progress_lines import ProgressBars, ProgressLines
from sfda.callbacks.run_folder import MetricsFile, RunFolder, WholeCheckpoints, last_checkpoint
from sfda.callbacks.signals import EndsAtOnce, end_ranks, ended_by_signals, signal_behind
from sfda.callbacks.skipped_files import SkippedFiles
from sfda.callbacks.wandb_run import WandbRun, settle_wandb_loggers
from sfda.data.datamodule import DomainAdaptationDataModule
from sfda.data.label_spaces import load_class_set
from sfda.errors import Interrupted, UserError
from sfda.files import WriteError, cannot_write, write_whole
from sfda.libraries import shorten, user_error_behind
from sfda.methods import Method, TrainedMethod
from sfda.methods.kinds.rebuild import import_method, method_modules
from sfda.runs.arguments import Job, run_name
from sfda.runs.checkpoints import read_checkpoint, refuse_another_network, stored_options
from sfda.runs.lock import hold, release
from sfda.runs.resuming import refuse_broken_parts
from sfda.runs.run import Run

QUIET = (
    "args parameter is intended to run from within Python",
    "does not have many workers",
    "exists and is not empty",
    "is smaller than the logging interval",
    "configure_optimizers. returned .None.",
    "treespec, LeafSpec",
    "GPU available but not used",
    "lr_scheduler.step",
    "in eval mode at the start of training",
)
"""Parts of the libraries' warnings that nobody can act on."""
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that Lightning's launcher sets."""


def run(job: Job) -> None:
    """Run one ``sfda fit`` or ``sfda validate``; a `UserError` where the arguments do not fit together."""
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=f".*{message}")
    warnings.showwarning = _show_warning
    sys.argv[1:] = [job.subcommand, *job.given]  # what Lightning's launcher starts further ranks with
    before = dict(os.environ)
    try:
        with ended_by_signals():
            CommandLine(job)
    except Interrupted as end:
        if end.how_to_go_on or not _is_first_process():
            raise
        raise Interrupted(end.signal, "give the same command again") from end
    except ArgumentError as error:
        raise (user_error_behind(error) or UserError(shorten(str(error)))) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except (ValueError, RuntimeError, ProcessException) as error:
        if (reason := user_error_behind(error)) is None:
            raise
        raise reason from error
    finally:
        release()
        _leave_the_group(before)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a user reads it, without the place in our code."""
    sys.stderr.write(f"warning: {message}\n")


def has_fit(class_path: str, options: Mapping[str, Any]) -> bool:
    """Whether a method has something to fit with these options; a `UserError` where it cannot be imported."""
    return import_method(class_path).has_fit_with(options)


def _leave_the_group(before: dict[str, str]) -> None:
    """End the process group that this run's launcher made: with it, a next run would start no ranks of its own."""
    if "LOCAL_RANK" in before or not (dist.is_available() and dist.is_initialized()):
        return
    dist.destroy_process_group()
    for name in LAUNCHED:
        os.environ.pop(name, None)
    os.environ.update({name: before[name] for name in LAUNCHED if name in before})


class CommandLine(LightningCLI):
    """Adds the run folder and the link from `classes` to `num_classes`; keeps checkpoints from changing the model."""

    def __init__(self, job: Job) -> None:
        self.job = job
        for module in method_modules():  # so that `--model AdaBN` finds its class
            importlib.import_module(module)
        super().__init__(
            Method,
            DomainAdaptationDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            parser_kwargs={name: {"exit_on_error": False} for name in ("fit", "validate")} | {"exit_on_error": False},
            args=job.words,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", type=str | None, help="run folder (default: runs/BENCHMARK/EXPERIMENT/seedN)")
        parser.add_argument(
            "--experiment", type=str | None, help="name in tables (default: the experiment or the class)"
        )
        parser.link_arguments(
            "data.init_args.classes",
            "model.init_args.num_classes",
            compute_fn=lambda classes: len(load_class_set(classes)),
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}

    def _parse_ckpt_path(self) -> None:
        """Refuse a checkpoint of another method; LightningCLI would silently become that method."""
        config = self.config[self.config.subcommand]
        if config.get("ckpt_path") is None:
            return
        checkpoint = read_checkpoint(config.ckpt_path)
        stored = stored_options(checkpoint, config.ckpt_path)
        configured = config.model.class_path
        if (class_path := stored.get("_class_path", configured)) != configured:
            raise UserError(
                f"--ckpt_path {config.ckpt_path} is a checkpoint of {class_path}, not of {configured}, and resumes or "
                "scores the same method; to start from its weights give it as --model.init_args.source_checkpoint"
            )
        refuse_another_network(stored, config.model.init_args, f"--ckpt_path {config.ckpt_path}")
        refuse_broken_parts(checkpoint, config.ckpt_path, resumes=self.config.subcommand == "fit")

    def before_instantiate_classes(self) -> None:
        """Settle the run folder before hours are spent."""
        config = self.config[self.subcommand]
        if config.trainer.precision in ("16-true", "bf16-true"):
            option, mixed = f"--trainer.precision {config.trainer.precision}", config.trainer.precision[:-4] + "mixed"
            raise UserError(f"{option}: weights and statistics need float32; give {mixed}")
        if config.experiment is None:
            config.experiment = config.model.class_path.rpartition(".")[2]
        if config.out is None:
            config.out = str(Path("runs", config.experiment, run_name(config.seed_everything)))
        self.output = Run(Path(config.out))
        self.folder = self.output.folder
        self.scores_a_run = self.subcommand == "validate" and self.job.run is not None
        # On every rank, so that none is left waiting: nothing that is looked for is written before all have looked.
        hold(self.folder, first=_is_first_process())
        self._check_folder(resumes=config.get("ckpt_path") is not None)
        settle_wandb_loggers(config.trainer.logger, self.folder, goes_on=self.job.run is not None)

    def _check_folder(self, *, resumes: bool) -> None:
        if self.output.is_finished and not self.scores_a_run:
            raise UserError(f"run folder {self.folder} holds a finished run: choose another --out, or move it away")
        if self.output.is_resumable and not (resumes and self.subcommand == "fit") and not self.scores_a_run:
            advice = f"resume it with `sfda fit --run {self.folder}`, choose another --out, or move it away"
            raise UserError(f"run folder {self.folder} holds an unfinished run: {advice}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that writes into the run folder."""
        config, settings = self.config_init[self.subcommand]["trainer"], self.config[self.subcommand]
        callbacks = [
            last_checkpoint(self.folder),
            EndsAtOnce(),
            SkippedFiles(),
            CollapseGuard(),
            Interpolation(),
            Pictures(self.folder),
            ImageRecords(self.output),
            WandbRun(self.folder),
            # Last, since a run with a scored row is never scored again: killed before, its pictures would be missing.
            RunFolder(self.output, settings.experiment, settings.seed_everything),
        ]
        given = config.get("callbacks") or []
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(ProgressBars() if sys.stdout.isatty() else ProgressLines())
        self.trainer_defaults["callbacks"] = callbacks
        if config.get("max_epochs") is None and config.get("max_steps", -1) == -1:
            if self.subcommand == "fit" and isinstance(self.model, TrainedMethod):
                raise UserError("say how long to train: --trainer.max_epochs N")
            kwargs["max_epochs"] = 1  # one pass; Lightning would warn that it takes 1000
        kwargs["default_root_dir"] = str(self.folder)
        if (loggers := config.get("logger")) is not False:
            given = [] if loggers in (None, True) else loggers if isinstance(loggers, list) else [loggers]
            kwargs["logger"] = [self._csv_logger(), *given] if self.subcommand == "fit" else given
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return trainer

    def _csv_logger(self) -> MetricsFile:
        """``metrics.csv``; that of an interrupted run is moved aside, since CSVLogger deletes what it finds."""
        metrics = self.folder / "metrics.csv"
        if metrics.exists() and _is_first_process():
            earlier = len(list(self.folder.glob("metrics.*.csv")))
            metrics.rename(self.folder / f"metrics.{earlier}.csv")
        return MetricsFile(str(self.folder), name="", version="")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        # Told beforehand, a resumed run knows in `setup` that it needs no initial weights.
        self.trainer.ckpt_path = kwargs.pop("ckpt_path")
        kwargs["weights_only"] = True
        if subcommand == "validate":
            kwargs["verbose"] = False
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit" and not self.model.has_fit:
            raise UserError(f"{type(self.model).__name__} has nothing to fit: score it with `sfda validate`")
        try:
            if _is_first_process():
                self._write_config(goes_on=subcommand == "fit" and self.config[subcommand].get("ckpt_path") is not None)
            super()._run_subcommand(subcommand)
        except SystemExit as end:
            if (number := signal_behind(end)) is None:
                raise
            end_ranks(self.trainer)
            raise Interrupted(number, self._how_to_go_on() if _is_first_process() else "") from end
        except (RuntimeError, ProcessException) as error:  # of this process, or of one that it forked
            if "Error(s) in loading state_dict" not in str(error):
                raise
            misfit = str(error).strip().splitlines()[-1].strip(" \t.")
            raise UserError(
                f"{self.trainer.ckpt_path} does not fit {type(self.model).__name__} with these options "
                f"({misfit}): give the checkpoint and the config.yaml of one run"
            ) from error
        except (WriteError, OSError) as error:
            if isinstance(error, OSError):
                error = cannot_write(error, None if error.filename else self.folder)
            raise UserError(f"{error}. What is written stays: {self._how_to_go_on()}") from error

    def _how_to_go_on(self) -> str:
        if self.output.is_finished:
            return f"score the run with `sfda validate --run {self.folder}`"
        if self.subcommand == "fit" and self.output.is_resumable:
            return f"`sfda fit --run {self.folder}` goes on from the last whole epoch"
        return "give the same command again"

    def _write_config(self, *, goes_on: bool) -> None:
        """What ``--run`` reads: the whole configuration, less what belongs to one call."""
        path = self.output.config_file
        if path.exists() and (self.scores_a_run or goes_on):
            return  # scoring a run must not change what it was, nor a resume that may fail
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        for key in ("config", "ckpt_path", "weights_only", "verbose", "out"):
            config.pop(key, None)
        write_whole(path, yaml.safe_dump(config, sort_keys=False).encode())


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0
