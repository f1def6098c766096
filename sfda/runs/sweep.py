"""``sfda sweep``: the trials of a W&B sweep file, here and without an account."""

import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from sfda.errors import UserError, did_you_mean
from sfda.files import WriteError, write_json
from sfda.processes import started
from sfda.progress import status, table_console
from sfda.runs.engine import Stage, fit
from sfda.runs.experiment import find_fragment
from sfda.runs.run import Row
from sfda.runs.sampling import Parameter, read_parameter
from sfda.runs.tables import as_ranking
from sfda.yaml_files import read_yaml

ARGS = "${args}"
_NEEDED = {"method", "metric", "parameters", "command"}
_OF_THE_SERVER = {"name", "description", "program", "project", "entity"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Sweep:
    """A sweep file, in the form that W&B gives it.

    Attributes:
        name: The file's name.
        method: ``grid`` (all combinations) or ``random``.
        metric: What a trial is judged by, as it is logged: ``target/infomax``.
        maximised: Whether a large value is good.
        parameters: What is varied.
        command: What follows ``sfda fit``, with ``${args}`` where the parameters go.
    """

    name: str
    method: str
    metric: str
    maximised: bool
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]


class Trial(NamedTuple):
    """One run of a sweep, numbered from 1, with the values of its parameters."""

    number: int
    parameters: Mapping[str, Any]
    stage: Stage


def read_sweep(name: str) -> Sweep:
    """Read a sweep file, a path or a name among the project's configs.

    Raises:
        UserError: no such file, it is not as W&B's sweep files are, or only W&B's server can carry it out.
    """
    path = find_fragment(name)
    content = read_yaml(path)
    try:
        return _sweep(path.stem, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _sweep(name: str, content: Any) -> Sweep:
    if not isinstance(content, Mapping) or not set(content) >= _NEEDED:
        raise UserError(f"a sweep file has the keys {', '.join(sorted(_NEEDED))}")
    if "early_terminate" in content:
        raise UserError("early_terminate is carried out by W&B's server: take it out to run the sweep here")
    if unknown := sorted(set(content) - _NEEDED - _OF_THE_SERVER):
        raise UserError(f"unknown key {unknown[0]}{did_you_mean(unknown[0], sorted(_NEEDED | _OF_THE_SERVER))}")
    if content["method"] not in ("grid", "random"):
        raise UserError(
            f"method {content['method']} needs W&B's server (`wandb sweep`, with an account); grid and random run here"
        )
    metric = content["metric"]
    goals = {"minimize": False, "maximize": True}
    if not isinstance(metric, Mapping) or "name" not in metric or metric.get("goal") not in goals:
        raise UserError("metric has a name, as it is logged, and a goal: minimize or maximize")
    parameters, command = tuple(_parameters(content["parameters"], content["method"])), _command(content["command"])
    return Sweep(name, content["method"], str(metric["name"]), goals[metric["goal"]], parameters, command)


def _parameters(content: Any, method: str) -> Iterator[Parameter]:
    if not isinstance(content, Mapping) or not content:
        raise UserError("parameters names at least one option, for example model.init_args.lr")
    for name, given in content.items():
        if not _NAME.fullmatch(str(name)) or name == "out":
            raise UserError(f"parameter {name}: an option without hyphens, for example model.init_args.lr; not out")
        parameter = read_parameter(str(name), given)
        if method == "grid" and parameter.values is None:
            raise UserError(f"parameter {name}: a grid runs through values; {parameter.distribution} has no end")
        yield parameter


def _command(content: Any) -> tuple[str, ...]:
    words = [str(word) for word in content] if isinstance(content, list) else []
    words = words[1:] if words[:1] == ["${env}"] else words
    if words[:2] != ["sfda", "fit"] or words.count(ARGS) != 1:
        raise UserError('command is a list: [sfda, fit, streets/ada_bn, "${args}"]')
    if other := [word for word in words if "${" in word and word != ARGS]:
        raise UserError(f"command: {other[0]} is filled in by W&B's agents only")
    if "--out" in (word.split("=")[0] for word in words):
        raise UserError("command: every trial needs a folder of its own: leave --out away")
    return tuple(words[2:])


def plan(sweep: Sweep, out: Path, trials: int | None = None, seed: int = 0) -> list[Trial]:
    """The trials of a sweep: the same seed gives the same ones, more of them begin with the same ones.

    Args:
        sweep: What is swept.
        out: Folder of all trials.
        trials: How many; None: the whole grid.
        seed: What `random` draws with.

    Raises:
        UserError: `random` without a number of trials.
    """
    if sweep.method == "random" and trials is None:
        raise UserError("--trials N: a random sweep has no end of its own")
    drawn = _grid(sweep.parameters) if sweep.method == "grid" else _random(sweep.parameters, seed, trials or 0)
    return [
        Trial(number, values, Stage(out, f"trial-{number}", _filled_in(sweep.command, values)))
        for number, values in enumerate(itertools.islice(drawn, trials), start=1)
    ]


def _grid(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    names = [parameter.name for parameter in parameters]
    for values in itertools.product(*(parameter.values or [] for parameter in parameters)):
        yield dict(zip(names, values, strict=True))


def _random(parameters: Sequence[Parameter], seed: int, trials: int) -> Iterator[dict[str, Any]]:
    """Combinations, none of them twice; few values may have fewer combinations than trials."""
    seen = []
    for draw in range(100 * trials):
        values = {parameter.name: parameter.draw(f"{seed} {draw}") for parameter in parameters}
        if values not in seen:
            seen.append(values)
            yield values


def _filled_in(command: Sequence[str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """As W&B's agents write ``${args}``."""
    arguments = [f"--{name}={value}" for name, value in values.items()]
    return tuple(word for part in command for word in (arguments if part == ARGS else [part]))


def sweep(
    config: str, trials: int | None = None, out: Path | None = None, seed: int = 0, logger: str | None = None
) -> int:
    """Run the trials of a sweep file and print them, the best first.

    Trials are processes and go on as stages do (`sfda.runs.engine`); one that failed stops no other and is tried again.

    Args:
        config: The sweep file.
        trials: How many trials; None: all of a grid.
        out: Folder of all trials and ``results.json``; default ``runs/sweep/NAME``.
        seed: What random trials are drawn with.
        logger: As in `sfda.runs.comparison.compare`.

    Returns:
        The exit status: 1 if a trial failed.

    Raises:
        UserError: the file is not as it should be, names options that there are not, or finished trials are others.
    """
    console = table_console()
    settings = read_sweep(config)
    folder = out or Path("runs", "sweep", settings.name)
    planned = plan(settings, folder, trials, seed)
    for trial in planned:
        trial.stage.run.check(trial.stage.settings())
    if pending := [trial.stage for trial in planned if not trial.stage.run.is_finished]:
        _check_options(console, pending[0])
    begun = time.monotonic()
    for trial in planned:
        _try(console, trial.stage, f"trial {trial.number}/{len(planned)}", logger)
    rows = [_row(settings, trial) for trial in planned]
    write_json(folder / "results.json", rows)
    names = [parameter.name for parameter in settings.parameters]
    console.print(as_ranking(settings.name, rows, names, maximised=settings.maximised))
    _explain_missing(console, settings, rows)
    console.print(f"{time.monotonic() - begun:.0f} s; runs and results.json are in {folder}", style="dim")
    return int(any(row["status"] == "failed" for row in rows))


def _try(console: Console, stage: Stage, title: str, logger: str | None) -> None:
    try:
        fit(console, stage, title, logger)
    except WriteError:
        raise  # no other trial could be written either
    except UserError as error:
        console.print(Text(str(error), style="red"))


def _check_options(console: Console, stage: Stage) -> None:
    """Parse the options of a trial, which all have: a wrong name should not cost every one of them."""
    words = ["fit", *stage.arguments, "--print_config"]
    with status(console, "checking the options"), started(words) as command:
        lines = command.output.read().strip().splitlines()
    if command.status != 0:
        raise UserError((lines or ["the options cannot be parsed"])[-1].removeprefix("sfda: "))


def _row(settings: Sweep, trial: Trial) -> Row:
    run = trial.stage.run
    scores = run.scores() if run.is_finished else {}
    return {
        "trial": trial.number,
        "folder": str(run.folder),
        "status": "finished" if run.is_finished else "failed",
        "parameters": dict(trial.parameters),
        "objective": settings.metric,
        "value": scores.get(settings.metric),
        "seconds": run.row().get("adapt_seconds"),
        "scores": scores,
    }


def _explain_missing(console: Console, settings: Sweep, rows: list[Row]) -> None:
    if (finished := [row for row in rows if row["status"] == "finished"]) and all(row["value"] is None for row in rows):
        logged = ", ".join(finished[0]["scores"]) or "nothing"
        console.print(Text(f"{settings.metric} was not logged by any fit; what was: {logged}", style="yellow"))
