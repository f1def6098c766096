"""``sfda compare``: run what is not yet run, score it, and set it side by side."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import Protocol

from rich.console import Console
from rich.text import Text

from sfda.compare.picture import draw_side_by_side
from sfda.compare.plan import Stage, plan, read_comparison
from sfda.compare.table import Row, as_sentence, as_table, write_results
from sfda.errors import UserError
from sfda.files import write_whole, writing
from sfda.processes import preload, started
from sfda.progress import status, table_console

TAIL = 12


def compare(config: str, out: Path, logger: str | None = None) -> int:
    """Run the experiments of a compare file in dependency order and print their table.

    Every command is a process of its own; what is finished is not run again, what was interrupted is resumed. The row
    of an experiment is printed as soon as it is scored.

    Args:
        config: The compare file.
        out: Folder of all runs, ``results.json``, ``results.csv`` and ``side_by_side.png``.
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
    preload()
    for command in comparison.prepare:
        _prepare(console, command)
    wanted = [stage for stage in stages if stage.experiment in comparison.experiments]
    for number, stage in enumerate(stages, start=1):
        title = f"{number}/{len(stages)} {stage.experiment} seed {stage.seed}"
        if stage.fitted:
            fit(console, stage, title, logger)
        if stage in wanted:
            _score(console, stage, title, logger)
    rows = [_row(stage) for stage in sorted(wanted, key=lambda stage: comparison.experiments.index(stage.experiment))]
    write_results(rows, out)
    console.print(as_table(rows))
    console.print(f"{time.monotonic() - started:.0f} s; runs, pictures and results.json are in {out}", style="dim")
    _point_on(console, rows, out)
    return 0


def _prepare(console: Console, command: str) -> None:
    """Run a command in this process: what draws or fetches data needs no torch."""
    from sfda.cli import main

    console.print(Text(f"$ sfda {command}", style="cyan"), soft_wrap=True)
    begun = time.monotonic()
    if main(shlex.split(command)) != 0:
        raise UserError(f"`sfda {command}` failed, see above")
    console.print(f"✓ {command}  {time.monotonic() - begun:.0f} s")


def _point_on(console: Console, rows: Sequence[Row], out: Path) -> None:
    """The one picture to open, and the next command to type."""
    if (picture := draw_side_by_side(rows, out)) is not None:
        console.print(f"Open {picture}: image, truth, and what each model sees", highlight=False, soft_wrap=True)
    adapted = [row for row in rows if row["source_free"] and not row["labels_read"] and row["adapt_seconds"]]
    if adapted:
        run = Path(str(adapted[-1]["config"])).parent
        sfda = "sfda" if which("sfda") else sys.argv[0]
        command = f"{sfda} predict --run {run} --images YOUR_PHOTOGRAPHS --out predictions"
        console.print(f"Next: {command}", highlight=False, soft_wrap=True)


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


def _score(console: Console, stage: Stage, title: str, logger: str | None) -> None:
    """Score a stage unless it has been, and print its row."""
    if not _is_scored(stage):
        if stage.fitted or (stage.folder / "result.json").exists():
            words = ["--run", str(stage.folder)]
        else:
            write_whole(stage.folder / "settings.sha256", f"{stage.fingerprint()}\n".encode())
            words = [*stage.arguments, *_logger_words(logger)]
        log = stage.folder / "validate.log"
        run_sfda(console, ["validate", *words], log, f"{title}, scoring", group=stage.out.name)
    console.print(Text(f"  {stage.experiment}: {as_sentence(_row(stage))}", style="bold"), soft_wrap=True)


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
