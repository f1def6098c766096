"""From a compare file to commands that could be typed by hand, in an order in which each finds what it needs."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfda.arguments import experiment_arguments, find_fragment
from sfda.data.paths import expand_path
from sfda.errors import UserError
from sfda.yaml_files import read_mapping, read_yaml

VALIDATED_ONLY = "SourceOnly"
_KEYS = {"benchmark", "experiments", "seeds", "prepare", "options"}


@dataclass(frozen=True)
class Comparison:
    """A compare file: which experiments of one benchmark stand side by side, with which seeds.

    Attributes:
        benchmark: Folder of the experiments.
        experiments: Their names.
        seeds: Every experiment is run with each.
        prepare: ``sfda`` commands that are run first.
        options: Command-line words that every run gets, such as another source domain.
    """

    benchmark: str
    experiments: tuple[str, ...]
    seeds: tuple[int, ...]
    prepare: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One run: an experiment with a seed.

    Attributes:
        experiment: Its name within the benchmark.
        seed: Its seed.
        out: Folder of the comparison.
        arguments: What follows ``sfda fit`` (or ``sfda validate`` for a method without a fit).
        needs: Experiments whose selected checkpoints it reads.
        fitted: Whether it has a fit.
    """

    experiment: str
    seed: int
    out: Path
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = field(default=())
    fitted: bool = True

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.out / self.experiment / f"seed{self.seed}"

    def command(self, subcommand: str = "fit") -> str:
        """What a user would type."""
        return shlex.join(["sfda", subcommand, *self.arguments])

    def _below_out(self, word: str) -> str:
        """A word of the arguments; paths of this comparison as they are below its folder."""
        path = Path(word)
        if path == self.folder or (path.suffix == ".ckpt" and path.is_relative_to(self.out)):
            return f"/{path.relative_to(self.out)}"
        return word

    def fingerprint(self) -> str:
        """Hash of the command and of every config it names: another one means that settings have changed.

        The same wherever the comparison's folder lies.
        """
        digest = hashlib.sha256(shlex.join(["sfda", "fit", *map(self._below_out, self.arguments)]).encode())
        for argument in experiment_arguments(self.arguments[0]):
            if argument.endswith(".yaml"):
                for path in with_references(Path(argument)):
                    digest.update(path.read_bytes())
        return digest.hexdigest()


def read_comparison(name: str) -> Comparison:
    """Read a compare file, a path or a name among the project's configs.

    Raises:
        UserError: no such file, or it says something that a compare file does not have.
    """
    path = find_fragment(name)
    content = read_mapping(path)
    if not {"benchmark", "experiments", "seeds"} <= set(content) <= _KEYS:
        raise UserError(
            f"{path}: a compare file has the keys benchmark, experiments and seeds, and may have prepare and options"
        )
    for key, kind in (("experiments", str), ("seeds", int), ("prepare", str)):
        entries = content.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, kind) for entry in entries):
            raise UserError(f"{path}: `{key}` must be a list of {kind.__name__}")
        if len(set(entries)) != len(entries) or (not entries and key != "prepare"):
            raise UserError(f"{path}: `{key}` must name at least one, and none twice")
    options = content.get("options", {})
    if not isinstance(options, Mapping):
        raise UserError(f"{path}: `options` must be nested like a config: {{data: {{init_args: …}}}}")
    return Comparison(
        content["benchmark"],
        tuple(content["experiments"]),
        tuple(content["seeds"]),
        tuple(content.get("prepare", [])),
        tuple(word for key, value in _leaves(options) for word in (f"--{key}", _as_word(value))),
    )


def plan(comparison: Comparison, out: Path) -> list[Stage]:
    """Every stage of a comparison, those it depends on included, each behind what it needs."""
    ordered: dict[tuple[str, int], Stage] = {}

    def add(experiment: str, seed: int, asked_by: tuple[str, ...]) -> None:
        if experiment in asked_by:
            raise UserError(f"experiments need each other in a circle: {' → '.join((*asked_by, experiment))}")
        if (experiment, seed) in ordered:
            return
        stage = make_stage(comparison.benchmark, experiment, seed, out, comparison.options)
        for needed in stage.needs:
            add(needed, seed, (*asked_by, experiment))
        ordered[experiment, seed] = stage

    for seed in comparison.seeds:
        for experiment in comparison.experiments:
            add(experiment, seed, ())
    return list(ordered.values())


def make_stage(benchmark: str, experiment: str, seed: int, out: Path, options: Sequence[str] = ()) -> Stage:
    """The stage of one experiment: checkpoints of other experiments are looked for below `out`."""
    files = [word for word in experiment_arguments(f"{benchmark}/{experiment}") if word.endswith(".yaml")]
    model, override = (read_mapping(Path(path)) for path in files[1:])
    pattern = re.compile(rf"runs/{re.escape(benchmark)}/([^/]+)/seed\d+/(selected|last)\.ckpt")
    folder = out / experiment / f"seed{seed}"
    arguments = [f"{benchmark}/{experiment}", "--seed_everything", str(seed), "--out", str(folder)]
    arguments += options
    needs = []
    for key, value in _leaves(override):
        if isinstance(value, str) and (found := pattern.fullmatch(value)):
            needs.append(found[1])
            arguments += [f"--{key}", str(out / found[1] / f"seed{seed}" / f"{found[2]}.ckpt")]
    model_options = {**(model.get("init_args") or {}), **((override.get("model") or {}).get("init_args") or {})}
    # What adapts online does so while it is scored.
    fitted = not str(model.get("class_path")).endswith(f".{VALIDATED_ONLY}") and not model_options.get("online")
    return Stage(experiment, seed, out, tuple(arguments), tuple(dict.fromkeys(needs)), fitted)


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        yield prefix, content
        return
    for key, value in content.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _as_word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def with_references(path: Path) -> Sequence[Path]:
    """A config, the fragments that it names, and the class files that these name.

    Raises:
        UserError: a fragment is missing.
    """
    content = read_mapping(path)
    named = {key: path.parent / value for key, value in content.items() if _is_config(value)}
    for key, file in named.items():
        if not file.is_file():
            raise UserError(f"{path}: `{key}` names {file}, which is not there; paths in this file are relative to it")
    contents = [content, *map(read_yaml, named.values())]
    leaves = [value for each in contents for key, value in _leaves(each) if "." in key and _is_config(value)]
    # A class file is relative to the working directory; the data module says so where it is missing.
    return [path, *named.values(), *filter(Path.is_file, map(expand_path, leaves))]


def _is_config(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))
