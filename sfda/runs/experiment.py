"""Experiments: a method's fragment, the benchmark's base and the experiment's own file, resolved into one config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfda.errors import UserError, did_you_mean
from sfda.yaml_files import read_mapping

Config = dict[str, Any]

PARTS = ("model", "data", "trainer")
_KEYS = {"source", "variants", *PARTS}
_OF_BASE = {"seed_everything", "experiments", *PARTS}
_NAMES_A_KIND = ("class_path", "layout")
_PACKAGE = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- files


def configs_folder() -> Path:
    """Where the project's own configs are: beside the package in a checkout, inside it where it is installed."""
    checkout = _PACKAGE.parent / "configs"
    return checkout if checkout.is_dir() else _PACKAGE / "configs"


def find_fragment(name: str) -> Path:
    """A YAML file by its path, or by its name among the project's own configs.

    Raises:
        UserError: there is none.
    """
    if (found := _find(name)) is not None:
        return found
    known = [path.relative_to(configs_folder()).as_posix() for path in sorted(configs_folder().rglob("*.yaml"))]
    raise UserError(f"{name}: neither a file here nor one of the project's configs{did_you_mean(name, known)}")


def _find(name: str) -> Path | None:
    return next((path for path in (Path(name), configs_folder() / name) if path.is_file()), None)


def is_config(value: object) -> bool:
    """Whether a value is the name of a config file."""
    return isinstance(value, str) and value.endswith((".yaml", ".yml", ".json"))


def read_config(path: Path) -> Config:
    """A config with the fragments that its parts name, whose paths are relative to it.

    Raises:
        UserError: a file is missing or is not as it should be.
    """
    content = read_mapping(path)
    for part in PARTS:
        if is_config(content.get(part)):
            file = path.parent / content[part]
            if not file.is_file():
                raise UserError(f"{path}: `{part}` names {file}, which is not there; paths in it are relative to it")
            content[part] = read_mapping(file) if part == "trainer" else read_class(file)
    return content


def read_class(path: Path) -> Config:
    """A model or data fragment.

    Raises:
        UserError: it does not name its class.
    """
    content = read_mapping(path)
    if "class_path" not in content:
        raise UserError(f"{path}: a model or data file begins with class_path, then init_args")
    return content


def data_options(path: Path, content: Config) -> Config:
    """The DataModule's `init_args` in a data fragment, a benchmark's base or a run's config.

    Raises:
        UserError: it says nothing about data.
    """
    data = content.get("data", content)
    options = data.get("init_args") if isinstance(data, dict) else None
    if not isinstance(options, dict) or not options.get("target"):
        raise UserError(
            f"{path}: names no `target` domain; give a data fragment such as data/streets.yaml, an experiment's "
            "base.yaml, or the config.yaml of a run"
        )
    return options


# ---------------------------------------------------------------- nested values


def merge(below: Any, above: Any) -> Any:
    """Nested values, those of `above` before those of `below`; lists are replaced, or made longer by ``name+``.

    A class or a layout that `above` names takes the place of another one, with all its options.
    """
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    if any(name in above and name in below and above[name] != below[name] for name in _NAMES_A_KIND):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        if key.endswith("+"):
            more = value if isinstance(value, list) else [value]
            merged[key[:-1]] = [*(merged.get(key[:-1]) or []), *more]
        else:
            merged[key] = merge(below.get(key), value)
    return merged


def leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values as (dotted name, value)."""
    if not isinstance(content, Mapping) or not content:
        yield prefix, content
        return
    for key, value in content.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


# ---------------------------------------------------------------- experiments


@dataclass(frozen=True)
class Experiment:
    """What ``benchmark/name`` stands for.

    Attributes:
        benchmark: The folder of its benchmark, ``streets``.
        name: Its name within the benchmark, ``ada_bn`` or, with a variant, ``ada_bn+multi_scale``.
        config: The whole config, as LightningCLI reads it.
        source: The experiment whose selected checkpoint it starts from; None where there is none.
    """

    benchmark: str
    name: str
    config: Config
    source: str | None

    def started_from(self, checkpoint: Path) -> Experiment:
        """The same experiment, starting from a checkpoint."""
        model = {"model": {"init_args": {"source_checkpoint": str(checkpoint)}}}
        return Experiment(self.benchmark, self.name, merge(self.config, model), self.source)


def resolve(name: str) -> Experiment:
    """The experiment ``benchmark/method`` or ``benchmark/method+variant``.

    Its config is, one over the other: the method's fragment, the benchmark's ``base.yaml``, the experiment of the
    folder that the base names under ``experiments``, the benchmark's own experiment, and the variant of each. An
    experiment's file may have ``model``, ``data`` and ``trainer``, the ``source`` that it starts from, and
    ``variants``: further such values by name.

    It starts from ``runs/<benchmark>/<source>/seed<N>/selected.ckpt``, N being the seed of the base.

    Raises:
        UserError: there is no such experiment, or one of its files is not as it should be.
    """
    benchmark, _, experiment = name.rpartition("/")
    if not benchmark:
        raise UserError(f"{name!r} is no experiment: name it as benchmark/experiment, for example streets/ada_bn")
    method, _, variant = experiment.partition("+")
    base = _read_base(benchmark)
    folders = [benchmark, *([base.pop("experiments")] if "experiments" in base else [])]
    files = [path for folder in reversed(folders) if (path := _find(f"experiment/{folder}/{method}.yaml")) is not None]
    if not files:
        raise UserError(f"{name}: there is no such experiment{did_you_mean(name, experiments_of(benchmark))}")
    config = merge({"model": read_class(find_fragment(f"model/{method}.yaml"))}, base)
    content = _with_variant(name, files, variant)
    source = content.pop("source", None)
    resolved = Experiment(benchmark, experiment, {**merge(config, content), "experiment": experiment}, source)
    if source is None:
        return resolved
    return resolved.started_from(Path("runs", benchmark, source, f"seed{base.get('seed_everything')}", "selected.ckpt"))


def _read_base(benchmark: str) -> Config:
    path = find_fragment(f"experiment/{benchmark}/base.yaml")
    content = read_config(path)
    if unknown := sorted(set(content) - _OF_BASE):
        raise UserError(f"{path}: unknown key {unknown[0]}; a benchmark's base has {', '.join(sorted(_OF_BASE))}")
    return content


def _with_variant(name: str, files: list[Path], variant: str) -> Config:
    content: Config = {}
    for path in files:
        content = merge(content, _read_experiment(path))
    variants = content.pop("variants", {})
    if variant and variant not in variants:
        raise UserError(f"{name}: {files[-1]} has no variant {variant}{did_you_mean(variant, variants)}")
    return merge(content, variants[variant]) if variant else content


def _read_experiment(path: Path) -> Config:
    content = read_config(path)
    for part in (content, *content.get("variants", {}).values()):
        if unknown := sorted(set(part) - _KEYS):
            raise UserError(f"{path}: unknown key {unknown[0]}; an experiment has {', '.join(sorted(_KEYS))}")
        checkpoint = str(((part.get("model") or {}).get("init_args") or {}).get("source_checkpoint"))
        if of_a_run := re.fullmatch(r"runs/[^/]+/([^/]+)/seed\d+/selected\.ckpt", checkpoint):
            raise UserError(f"{path}: say `source: {of_a_run[1]}` instead of the path {checkpoint}")
    return content


def experiments_of(benchmark: str) -> list[str]:
    """All experiments of a benchmark, variants included, as ``benchmark/name``."""
    base = _read_base(benchmark)
    folders = (benchmark, base["experiments"]) if "experiments" in base else (benchmark,)
    found: dict[str, set[str]] = {}
    for folder in [root / "experiment" / folder for folder in folders for root in (Path(), configs_folder())]:
        for path in folder.glob("*.yaml"):
            if _find(f"model/{path.name}") is not None:
                found.setdefault(path.stem, {""}).update(
                    f"+{name}" for name in _read_experiment(path).get("variants", ())
                )
    return sorted(f"{benchmark}/{method}{variant}" for method, variants in found.items() for variant in variants)
