"""Runs what is not yet run: the stages of a comparison, the trials of a sweep."""

import os
import shlex
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sfda.errors import UserError
from sfda.files import writing
from sfda.processes import asked, started
from sfda.progress import status
from sfda.runs.arguments import expand
from sfda.runs.run import Run

TAIL = 12


@dataclass(frozen=True)
class Stage:
    """One run of several: an experiment with a seed, a trial of a sweep.

    Attributes:
        out: Folder of all runs that belong together.
        name: Its run folder below `out`.
        arguments: What follows ``sfda fit``, or ``sfda validate`` for a method without a fit, but for ``--out``.
    """

    out: Path
    name: str
    arguments: tuple[str, ...]

    @property
    def run(self) -> Run:
        """Its run folder."""
        return Run(self.out / self.name)

    def words(self, logger: str | None = None) -> list[str]:
        """What a user would type, with a further logger, which is no part of its settings."""
        loggers = [] if logger is None else ["--trainer.logger", logger]
        return [*self.arguments, "--out", str(self.run.folder), *loggers]

    def settings(self) -> dict[str, Any]:
        """Everything that decides what comes out of it."""
        return expand("fit", self.arguments).settings(self.out)


def fit(console: Console, stage: Stage, title: str, logger: str | None = None) -> None:
    """Fit what is not finished, in a process of its own; what was interrupted is resumed, with the loggers it had.

    Args:
        console: Where the command and its progress are shown.
        stage: What is fitted.
        title: What it is called there.
        logger: Fragment of a logger that it gets when it begins.

    Raises:
        UserError: the fit failed.
    """
    run = stage.run
    if run.is_finished:
        console.print(f"✓ {title} (finished before)", style="dim")
        return
    run.claim(stage.settings())
    words = ["--run", str(run.folder)] if run.is_resumable else stage.words(logger)
    log = run.folder / "log.txt"
    run_sfda(console, ["fit", *words], log, title, group=stage.out.name)
    if not run.is_finished:
        raise UserError(f"{title} ended without a result, {run.row_file}: see its log {log}; the same command goes on")


def score(console: Console, stage: Stage, title: str, logger: str | None = None) -> None:
    """Score what is not scored yet; arguments and errors as for `fit`."""
    run = stage.run
    if run.is_scored:
        return
    words = ["--run", str(run.folder)]
    if not run.is_finished:  # nothing was fitted
        run.claim(stage.settings())
        words = stage.words(logger)
    run_sfda(console, ["validate", *words], run.folder / "validate.log", f"{title}, scoring", group=stage.out.name)


def has_fit(stage: Stage) -> bool:
    """Whether its method has something to fit with these options, as its class says.

    Raises:
        UserError: the class cannot be imported.
    """
    model = expand("fit", stage.arguments).settings(stage.out)["config"]["model"]
    return bool(asked("sfda.cli.lightning_cli", "has_fit", model["class_path"], model.get("init_args") or {}))


def run_sfda(console: Console, words: Sequence[str], log: Path, title: str, *, group: str) -> None:
    """Run ``sfda WORDS``; its last line is shown while it works, all of it goes into the log.

    Args:
        console: Where the command and its progress are shown.
        words: What follows ``sfda``.
        log: File that its output is added to.
        title: What is shown beside its progress.
        group: Group of its W&B run, if it has one and the environment names no other.

    Raises:
        UserError: it failed; the end of its log is in the message.
    """
    console.print(Text(f"$ sfda {shlex.join(words)}", style="cyan"), soft_wrap=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    lines: deque[str] = deque(maxlen=TAIL)
    with (
        writing(log),
        log.open("a", encoding="utf-8") as file,
        status(console, title) as show,
        started(words, WANDB_RUN_GROUP=os.environ.get("WANDB_RUN_GROUP", group)) as command,
    ):
        for line in command.output:
            file.write(line)
            file.flush()
            lines.append(line.rstrip())
            show(lines[-1])
            if line.startswith("warning: "):
                console.print(Text(f"  {line.rstrip()}", style="yellow"))
    if command.status != 0:
        tail = "\n  ".join(lines)
        raise UserError(
            f"{title} failed (status {command.status}); its log {log} ends with\n  {tail}\n"
            "What is finished stays; the same command goes on from there."
        )
    console.print(f"✓ {title}  {time.monotonic() - begun:.0f} s")
