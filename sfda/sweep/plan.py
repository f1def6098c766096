"""From a sweep file to trials: commands that could be typed by hand, each with a folder of its own."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfda.arguments import expand, find_fragment
from sfda.compare.plan import with_references
from sfda.errors import UserError
from sfda.sweep.sampling import Parameter, read_parameter
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


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: From 1.
        out: Folder of the sweep.
        parameters: The values of this trial.
        options: What follows ``sfda fit``.
    """

    number: int
    out: Path
    parameters: Mapping[str, Any]
    options: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.out / f"trial-{self.number}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows ``sfda fit``, the run folder included."""
        return (*self.options, "--out", str(self.folder))

    def fingerprint(self) -> str:
        """Hash of the command and of every config it names: another one means that settings have changed."""
        digest = hashlib.sha256(shlex.join(self.options).encode())
        for word in expand("fit", self.options):
            if word.endswith(".yaml"):
                for path in with_references(Path(word)):
                    digest.update(path.read_bytes())
        return digest.hexdigest()


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
        close = difflib.get_close_matches(unknown[0], sorted(_NEEDED | _OF_THE_SERVER), n=1)
        raise UserError(f"unknown key {unknown[0]}" + (f": did you mean {close[0]}?" if close else ""))
    if content["method"] not in ("grid", "random"):
        raise UserError(
            f"method {content['method']} needs W&B's server (`wandb sweep`, with an account); grid and random run here"
        )
    metric = content["metric"]
    goals = {"minimize": False, "maximize": True}
    if not isinstance(metric, Mapping) or "name" not in metric or metric.get("goal") not in goals:
        raise UserError("metric has a name, as it is logged, and a goal: minimize or maximize")
    return Sweep(
        name,
        content["method"],
        str(metric["name"]),
        goals[metric["goal"]],
        tuple(_parameters(content["parameters"], content["method"])),
        _command(content["command"]),
    )


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
        Trial(number, out, values, _filled_in(sweep.command, values))
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
