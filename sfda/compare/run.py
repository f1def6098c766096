"""``sfda compare``: run what is not yet run, score it, and set it side by side."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.text import Text

from sfda.compare.plan import Stage, plan, read_comparison
from sfda.compare.table import as_table, write_results
from sfda.errors import UserError
from sfda.files import write_whole, writing
from sfda.progress import table_console

TAIL = 12


def compare(config: str, out: Path, logger: str | None = None) -> int:
    """Run the experiments of a compare file in dependency order and print their table.

    Every fit is a process of its own, all scoring is one process; what is finished is not run again, what was
    interrupted is resumed.

    Args:
        config: The compare file.
        out: Folder of all runs, ``results.json`` and ``results.csv``.
        logger: Fragment of a logger that every run gets when it begins; it is no part of a run's settings.

    Returns:
        The exit status.

    Raises:
        UserError: the compare file is not as it should be, a stage failed, or settings changed since it was run.
    """
    console = table_console()
    comparison = read_comparison(config)
    stages = plan(comparison, out)
    for stage in stages:
        _check_unchanged(stage)
    started = time.monotonic()
    for command in comparison.prepare:
        run_sfda(console, shlex.split(command), out / "prepare.log", "preparing", group=out.name)
    fits = [stage for stage in stages if stage.fitted]
    for number, stage in enumerate(fits, start=1):
        fit(console, stage, f"{number}/{len(fits)} {stage.experiment} seed {stage.seed}", logger)
    wanted = [stage for stage in stages if stage.experiment in comparison.experiments]
    _validate(console, [stage for stage in wanted if not _is_scored(stage)], out, logger)
    rows = [_row(stage) for stage in sorted(wanted, key=lambda stage: comparison.experiments.index(stage.experiment))]
    write_results(rows, out)
    console.print(as_table(rows))
    console.print(f"{time.monotonic() - started:.0f} s; runs, pictures and results.json are in {out}", style="dim")
    return 0


class Fittable(Protocol):
    """A run that has a fit: a stage of a comparison, a trial of a sweep."""

    @property
    def out(self) -> Path:
        """Folder of all runs that belong together."""

    @property
    def folder(self) -> Path:
        """Its run folder."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows ``sfda fit``."""

    def fingerprint(self) -> str:
        """Hash of its settings."""


def fit(console: Console, run: Fittable, title: str, logger: str | None = None) -> None:
    """Fit what is not finished, in a process of its own; what was interrupted is resumed, with the loggers it had.

    Raises:
        UserError: the fit failed.
    """
    if (run.folder / "result.json").exists():
        known = (run.folder / "settings.sha256").exists()
        note = "finished before" if known else "finished by hand: its settings are not checked"
        console.print(f"✓ {title} ({note})", style="dim")
        return
    write_whole(run.folder / "settings.sha256", f"{run.fingerprint()}\n".encode())
    resumable = (run.folder / "last.ckpt").exists()
    arguments = ["fit", "--run", str(run.folder)] if resumable else ["fit", *run.arguments, *_logger_words(logger)]
    run_sfda(console, arguments, run.folder / "log.txt", title, group=run.out.name)


def _logger_words(logger: str | None) -> list[str]:
    return [] if logger is None else ["--trainer.logger", logger]


def _validate(console: Console, stages: Sequence[Stage], out: Path, logger: str | None) -> None:
    if not stages:
        return
    jobs: list[str] = []
    for stage in stages:
        run = stage.fitted or (stage.folder / "result.json").exists()
        if not run:
            write_whole(stage.folder / "settings.sha256", f"{stage.fingerprint()}\n".encode())
        words = ["--run", str(stage.folder)] if run else [*stage.arguments, *_logger_words(logger)]
        jobs += ["--then", *words]
    title = f"scoring {len(stages)} models"
    run_sfda(console, ["validate", *jobs[1:]], out / "validate.log", title, group=out.name)


def run_sfda(console: Console, arguments: Sequence[str], log: Path, title: str, *, group: str) -> None:
    """Run ``sfda ARGUMENTS``; its last line is shown while it works, all of it goes into the log.

    Args:
        console: Where the command and its progress are shown.
        arguments: The words behind ``sfda``.
        log: File that its output is added to.
        title: What is shown beside its progress.
        group: Group of its W&B run, if it has one and the environment names no other.

    Raises:
        UserError: it failed; the end of its log is in the message.
    """
    console.print(
        Text("$ sfda " + shlex.join(arguments).replace(" --then ", " --then \\\n    "), style="cyan"), soft_wrap=True
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    environment = {"WANDB_RUN_GROUP": group, **os.environ, "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with (
        writing(log),
        log.open("a", encoding="utf-8") as file,
        console.status(title) as status,
        subprocess.Popen(
            [sys.executable, "-m", "sfda.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            file.flush()
            lines.append(line.rstrip())
            status.update(Text(f"{title}: {lines[-1]}"[: console.width - 4]))
            if line.startswith("warning: "):
                console.print(Text(f"  {line.rstrip()}", style="yellow"))
    if process.returncode != 0:
        tail = "\n  ".join(lines[-TAIL:])
        raise UserError(
            f"{title} failed (status {process.returncode}); its log {log} ends with\n  {tail}\n"
            "What is finished stays; the same command goes on from there."
        )
    console.print(f"✓ {title}  {time.monotonic() - started:.0f} s")


def _check_unchanged(stage: Stage) -> None:
    stored = stage.folder / "settings.sha256"
    if stored.exists() and stored.read_text().strip() != stage.fingerprint():
        raise UserError(
            f"{stage.folder} was run with other settings than the configs have now: give another --out, or move that "
            "folder away to run it again"
        )


def _is_scored(stage: Stage) -> bool:
    path = stage.folder / "result.json"
    return path.exists() and json.loads(path.read_text()).get("target_miou") is not None


def _row(stage: Stage) -> dict[str, object]:
    row: dict[str, object] = json.loads((stage.folder / "result.json").read_text())
    return row
