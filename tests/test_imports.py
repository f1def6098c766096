"""What computes stands on what is below it: no folder imports one that comes later."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfda

ROOT = Path(sfda.__file__).parent
ORDER = (
    "data",
    "drawing",
    "metrics",
    "networks",
    "losses",
    "pseudo_labels",
    "runs.checkpoints",
    "methods",
    "callbacks",
)
LOW = ("errors", "files", "libraries", "ranks", "progress", "yaml_files")
"""Single modules that everything may import."""


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that are imported when a module is, or when its functions are called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sfda."):
            yield node.module.removeprefix("sfda.")
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("sfda.") for alias in node.names if alias.name.startswith("sfda."))
        yield from imported(node)


def place(module: str) -> str | None:
    """The folder, or the single module, of `ORDER` or `LOW` that a module belongs to."""
    return next((name for name in (*ORDER, *LOW) if f"{module}.".startswith(f"{name}.")), None)


def modules(name: str) -> list[Path]:
    path = ROOT.joinpath(*name.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("name", [*LOW, *ORDER[1:-1]])
def test_a_folder_imports_only_what_is_below_it(name):
    allowed = {*LOW, *ORDER[: ORDER.index(name) + 1]} if name in ORDER else set(LOW)
    for path in modules(name):
        for module in imported(ast.parse(path.read_text())):
            assert place(module) in allowed, f"{path.relative_to(ROOT)} imports sfda.{module}"


@pytest.mark.medium
@pytest.mark.parametrize("first", ["sfda.methods", "sfda.methods.kinds.rebuild", "sfda.methods.tent", "sfda.callbacks"])
def test_methods_can_be_imported_in_any_order(first):
    code = f"import {first}; from sfda.methods import Method, TrainedMethod, GatheredMethod, OnlineMethod, "
    code += "PostHocCalibration, PseudoLabelledMethod, TaughtMethod, ValueNetMethod"
    subprocess.run([sys.executable, "-c", code], check=True)
