"""What a YAML file says about the data, and a run's about its model, read without torch or a DataModule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sfda.arguments import find_fragment
from sfda.data.layouts import Domain
from sfda.errors import UserError
from sfda.yaml_files import read_mapping


def data_options(name: str) -> dict[str, Any]:
    """The DataModule's `init_args` in a data fragment, an experiment's ``base.yaml`` or a run's ``config.yaml``.

    Args:
        name: The file, or its name among the project's own configs.

    Raises:
        UserError: no such file, no YAML, or nothing about data in it.
    """
    path = find_fragment(name)
    content = read_mapping(path)
    data = content.get("data", content)
    if isinstance(data, str):  # LightningCLI, too, reads it relative to the file in which it stands
        path = path.parent / data
        data = read_mapping(path)
    options = data.get("init_args") if isinstance(data, dict) else None
    if not isinstance(options, dict) or not options.get("target"):
        raise UserError(
            f"{path}: names no `target` domain; give a data fragment such as data/streets.yaml, "
            "an experiment's base.yaml, or the config.yaml of a run"
        )
    return options


def model_options(run: Path) -> dict[str, Any]:
    """What the ``config.yaml`` of a run folder says of its model: the class path under ``class``, then its options.

    Raises:
        UserError: no run folder, or it names no model.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"--run {run}: not a run folder, it has no config.yaml")
    model: Any = read_mapping(path).get("model")
    options = model.get("init_args") if isinstance(model, dict) else None
    if not isinstance(options, dict) or not isinstance(model.get("class_path"), str):
        raise UserError(f"{path}: names no `model` with class_path and init_args; give a run folder that `sfda` wrote")
    return {"class": model["class_path"], **options}


def domains_of(options: Mapping[str, Any]) -> dict[str, Domain]:
    """The configured domains by name, `source` (where there is one) before `target`.

    Raises:
        UserError: a domain has unknown options, or lacks one.
    """
    return {name: _domain(name, options[name]) for name in ("source", "target") if options.get(name)}


def _domain(name: str, given: Any) -> Domain:
    known = [field.name for field in fields(Domain)]
    if not isinstance(given, dict):
        raise UserError(f"`{name}` must be a mapping with `layout` and `root`, not {given!r}")
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"`{name}` has unknown options {unknown}; known are {', '.join(known)}")
    if missing := [key for key in ("layout", "root") if given.get(key) is None]:
        raise UserError(f"`{name}` lacks {' and '.join(missing)}")
    if not isinstance(given.get("max_pixels", 1), int):
        raise UserError(f"`{name}` has a `max_pixels` that is no whole number: {given['max_pixels']!r}")
    if wrong := [key for key, value in given.items() if key != "max_pixels" and not isinstance(value, str | None)]:
        raise UserError(f"`{name}` has options that are no text: {', '.join(wrong)}")
    return Domain(**given)
