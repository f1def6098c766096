"""``sfda sweep``: the trials of a W&B sweep file, here and without an account."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sfda.compare.run import fit
from sfda.errors import UserError
from sfda.files import WriteError
from sfda.processes import started
from sfda.progress import status, table_console
from sfda.sweep.objective import scores_of_run
from sfda.sweep.plan import Sweep, Trial, plan, read_sweep
from sfda.sweep.table import Row, as_table, write_results


def sweep(
    config: str, trials: int | None = None, out: Path | None = None, seed: int = 0, logger: str | None = None
) -> int:
    """Run the trials of a sweep file and print them, the best first.

    Every trial is a process of its own. What is finished is not run again, what was interrupted is resumed, what
    failed is tried again and stops no other trial.

    Args:
        config: The sweep file.
        trials: How many trials; None: all of a grid.
        out: Folder of all trials and ``results.json``; default ``runs/sweep/NAME``.
        seed: What random trials are drawn with.
        logger: As in `sfda.compare.run.compare`.

    Returns:
        The exit status: 1 if a trial failed.

    Raises:
        UserError: the file is not as it should be, names options that there are not, or finished trials are others.
    """
    console = table_console()
    settings = read_sweep(config)
    planned = plan(settings, out or Path("runs", "sweep", settings.name), trials, seed)
    for trial in planned:
        _check_unchanged(trial)
    if pending := [trial for trial in planned if not _is_finished(trial)]:
        _check_options(console, pending[0])
    started = time.monotonic()
    for trial in planned:
        _try(console, trial, f"trial {trial.number}/{len(planned)}", logger)
    rows = [_row(settings, trial) for trial in planned]
    folder = planned[0].out
    write_results(rows, folder)
    console.print(as_table(settings, rows))
    _explain_missing(console, settings, rows)
    console.print(f"{time.monotonic() - started:.0f} s; runs and results.json are in {folder}", style="dim")
    return int(any(row["status"] == "failed" for row in rows))


def _try(console: Console, trial: Trial, title: str, logger: str | None) -> None:
    try:
        fit(console, trial, title, logger)
    except WriteError:
        raise  # no other trial could be written either
    except UserError as error:
        console.print(Text(str(error), style="red"))


def _is_finished(trial: Trial) -> bool:
    return (trial.folder / "result.json").is_file()


def _check_unchanged(trial: Trial) -> None:
    """A trial that failed at once may be mended; one that has weights may not become another."""
    begun = _is_finished(trial) or (trial.folder / "last.ckpt").is_file()
    stored = trial.folder / "settings.sha256"
    if begun and stored.exists() and stored.read_text().strip() != trial.fingerprint():
        raise UserError(
            f"{trial.folder} is a trial of other settings: the sweep file, --seed or a config has changed. Give "
            "another --out, or move that folder away to run it again"
        )


def _check_options(console: Console, trial: Trial) -> None:
    """Parse the options of a trial, which all have: a wrong name should not cost every one of them."""
    with (
        status(console, "checking the options"),
        started(["fit", *trial.options, "--print_config"]) as command,
    ):
        lines = command.output.read().strip().splitlines()
    if command.status != 0:
        raise UserError((lines or ["the options cannot be parsed"])[-1].removeprefix("sfda: "))


def _row(settings: Sweep, trial: Trial) -> Row:
    finished = _is_finished(trial)
    scores = scores_of_run(trial.folder) if finished else {}
    result = json.loads((trial.folder / "result.json").read_text(encoding="utf-8")) if finished else {}
    return {
        "trial": trial.number,
        "folder": str(trial.folder),
        "status": "finished" if finished else "failed",
        "parameters": dict(trial.parameters),
        "objective": settings.metric,
        "value": scores.get(settings.metric),
        "seconds": result.get("adapt_seconds"),
        "scores": scores,
    }


def _explain_missing(console: Console, settings: Sweep, rows: list[Row]) -> None:
    finished = [row for row in rows if row["status"] == "finished"]
    if finished and all(row["value"] is None for row in finished):
        logged = ", ".join(finished[0]["scores"]) or "nothing"
        console.print(Text(f"{settings.metric} was not logged by any fit; what was: {logged}", style="yellow"))
