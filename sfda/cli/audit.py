"""``sfda audit``: which files a short fit and its scoring open, against what the method declares that it reads."""

import io
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfda.cli.audit_report import Phase, other_kind, print_table, print_verdict
from sfda.cli.lightning_cli import run
from sfda.data.kinds_of_files import DataFiles, may_adapt, may_score
from sfda.data.layouts import domains_of
from sfda.data.places import lacks_validation
from sfda.errors import UserError
from sfda.methods import Method
from sfda.methods.kinds.rebuild import import_method
from sfda.opened import Opened, recorded
from sfda.progress import status, table_console
from sfda.runs.arguments import Job, expand
from sfda.runs.experiment import data_options, find_fragment, merge
from sfda.runs.run import Run
from sfda.yaml_files import read_mapping

LIMITS = {
    "logger": False,
    "enable_progress_bar": False,
    "max_steps": -1,
    "min_steps": None,
    "max_time": None,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "accumulate_grad_batches": 1,
    "overfit_batches": 0.0,
}
"""What a trainer may say that a fit of `trainer/smoke.yaml` must not."""
ONE_PROCESS = ("--trainer.devices", "1", "--trainer.strategy", "auto")
ONLINE = "adapt_online"
"""The hook of a method that adapts while it is scored."""


def audit(folder: Path | None, words: Sequence[str]) -> int:
    """Run ``sfda audit``; returns the exit status, 1 where a file was opened that may not be.

    Args:
        folder: A run, whose config is audited; None for the experiment that `words` name.
        words: What ``sfda fit`` is given.

    Raises:
        UserError: an argument cannot be used, or the fit or its scoring fails.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError("sfda audit needs a system that forks processes, such as Linux")
    if taken := [word for word in words if word.split("=")[0] in ("--out", "--run", "--ckpt_path")]:
        raise UserError(f"sfda audit adapts from the beginning, in a temporary folder: leave {taken[0]} away")
    if folder is not None:
        Run(folder).config()  # refuses what is no run folder
        words = ["--config", str(Run(folder).config_file), *words]
    console = table_console()
    with tempfile.TemporaryDirectory(prefix="sfda-audit-") as temporary:
        place = Path(temporary).resolve()
        job = _short(expand("fit", words), place / "run")
        settings = job.settings(place)
        method = _method(settings["config"])
        domains = domains_of(data_options(Path("--data"), settings["config"]))
        files = DataFiles(domains, [Path(path) for path in settings["class_files"]])
        stand_in = lacks_validation(domains["target"]) and not method.needs.labels_read
        adapting = Phase("adapting", lambda kind: may_adapt(kind, method.needs))
        scoring = Phase("scoring", lambda kind: may_score(kind, stand_in=stand_in))
        jobs = [(adapting, job)]
        if not method.has_fit_with(settings["config"]["model"].get("init_args") or {}):
            jobs = [(scoring, replace(job, subcommand="validate"))]
        for phase, each in jobs:
            with status(console, f"{method.__name__}, {phase.name}"):
                for opened in _opened_by(each, files, phase, place / f"{phase.name}.jsonl"):
                    kind = files.kind(opened.path, is_folder=opened.is_folder) or other_kind(opened.path, place)
                    during = adapting if opened.below(ONLINE) else phase
                    if during is adapting or not opened.is_folder:  # to look for labels is part of scoring
                        during.add(opened, kind)
            if phase is adapting:
                jobs.append((scoring, expand("validate", ["--run", str(place / "run")])))
    print_table((adapting, scoring), console)
    return print_verdict(method, (adapting, scoring), console)


def _short(job: Job, out: Path) -> Job:
    """The same job in a few steps, in one process, elsewhere."""
    trainer = {**read_mapping(find_fragment("trainer/smoke.yaml")), **LIMITS}
    config = merge(job.config, {"trainer": trainer})
    return replace(job, config=config, options=(*job.options, *ONE_PROCESS, "--out", str(out)), run=None)


def _method(config: Mapping[str, Any]) -> type[Method]:
    model = config.get("model")
    if not isinstance(model, Mapping) or "." not in str(model.get("class_path")):
        raise UserError("sfda audit needs the whole class path of the method: name an experiment, or give --model FILE")
    return import_method(model["class_path"])


def _opened_by(job: Job, files: DataFiles, phase: Phase, log: Path) -> list[Opened]:
    """What a job opens, in order; workers are forked, which hands the hook on to them."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    try:
        with recorded(log, files.folders_without(phase.may)) as opened, redirect_stdout(io.StringIO()):
            run(job)
    finally:
        multiprocessing.set_start_method(before, force=True)
    return opened
