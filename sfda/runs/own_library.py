"""Configs that name functions of Python's own library are refused before anything in them is imported.

jsonargparse imports what a `class_path` names before it looks at its type, and calls no function, but gives functions
that a text names to arguments that take them, such as those of Lightning's `LambdaCallback`, which calls them. Nothing
that a run is built from lies in the standard library, so that much can be refused. It is no sandbox: a config may name
any module that is installed or lies in the current folder.
"""

import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from sfda.errors import UserError

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def refuse_functions_of_python(config: Mapping[str, Any]) -> None:
    """Look through all texts of a config.

    Raises:
        UserError: one names a function or a class of the standard library.
    """
    for name, text in _texts(config):
        if is_callable_of_python(text):
            raise UserError(
                f"the config names {text}, of Python's own library, as {name}: no part of a run is built from it. Read "
                "a config that you have not written before you use it: what it names is imported and called"
            )


def is_callable_of_python(text: str) -> bool:
    """Whether a text is the dotted name of a function or a class of the standard library; imports nothing else."""
    if _DOTTED.fullmatch(text) is None or text.partition(".")[0] not in sys.stdlib_module_names:
        return False
    try:
        return callable(pkgutil.resolve_name(text))
    except (ImportError, AttributeError, ValueError):
        return False


def _texts(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All texts in nested values, with their dotted names."""
    if isinstance(content, str):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _texts(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _texts(value, f"{name}[{number}]")
