"""Model and data files that stand one behind the other on a command line."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from sfda.data.readers import Domain
from sfda.errors import UserError
from sfda.yaml_files import read_mapping


def complete_fragments(arguments: Sequence[str]) -> list[str]:
    """Behind every ``--model FILE`` and ``--data FILE``, the defaults of what the file leaves open.

    Given over another fragment of its class, a file would otherwise keep that one's values wherever it is silent.
    """
    completed: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        completed.append(word)
        if before in ("--model", "--data") and word.endswith((".yaml", ".yml", ".json")):
            for name, default in _left_open(Path(word)).items():
                completed += [
                    f"{before}.init_args.{name}",
                    default if isinstance(default, str) else json.dumps(default),
                ]
    return completed


def _left_open(fragment: Path) -> dict[str, Any]:
    """Options, with their defaults, that a fragment of a class does not name."""
    content = read_mapping(fragment)
    if "class_path" not in content:
        raise UserError(f"{fragment}: a model or data file begins with class_path, then init_args")
    parser = ArgumentParser()
    parser.add_class_arguments(_import(content["class_path"], fragment), "options")
    named = content.get("init_args") or {}
    optional = {action.dest.split(".")[1] for action in parser._actions if "." in action.dest and not action.required}
    defaults = parser.get_defaults().options.as_dict()
    left_open = {name: value for name, value in defaults.items() if name in optional - {*named, "num_classes"}}
    for domain in ("source", "target"):  # a data set begun by another fragment would shine through in the same way
        if isinstance(named.get(domain), dict):
            defaults_of_parts = {part.name: part.default for part in dataclasses.fields(Domain)}
            if missing := [name for name in ("layout", "root") if name not in named[domain]]:
                raise UserError(f"{fragment}: {domain} lacks {' and '.join(missing)}")
            left_open[domain] = {**defaults_of_parts, **named[domain]}
    return left_open


def _import(class_path: str, fragment: Path) -> type:
    module, _, name = class_path.rpartition(".")
    try:
        found: type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{fragment}: class_path {class_path} cannot be imported: {error}") from error
    return found
