"""Which folder may import which: no circle, and no torch where a mistake should be answered at once."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sfda"


def imported(path):
    """Modules of sfda that a file imports, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sfda":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sfda")


def place(module):
    """The folder of a module, or the module itself where it lies in none."""
    return module.split(".")[1]


FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"]


def graph():
    places = {path.stem if path.parent == PACKAGE else path.relative_to(PACKAGE).parts[0] for path in FILES}
    edges = {name: set() for name in places}
    for path in FILES:
        own = path.stem if path.parent == PACKAGE else path.relative_to(PACKAGE).parts[0]
        edges[own] |= {place(module) for module in imported(path)} & places - {own}
    return edges


def test_no_folder_imports_another_in_a_circle():
    order = list(graphlib.TopologicalSorter(graph()).static_order())  # raises CycleError, which names the circle
    assert order.index("data") < order.index("methods") < order.index("callbacks") < order.index("cli")


def test_data_knows_no_method():
    assert not graph()["data"] & {"methods", "callbacks", "pseudo_labels", "networks", "runs", "cli", "town"}


def loaded_by(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split()[-1].split(","))


@pytest.mark.parametrize(
    "code",
    [
        "import sfda.runs." + ", sfda.runs.".join(
            path.stem for path in sorted((PACKAGE / "runs").glob("[a-z]*.py")) if path.stem != "checkpoints"
        ),
        "from sfda.cli.main import main; main(['--help'])",
        "from sfda.cli.main import main\ntry: main(['compare', '--help'])\nexcept SystemExit: pass",
        "from sfda.cli.main import main; main(['compare', 'nothing.yaml', '--out', 'x'])",
        "import sfda.cli.data_check",
    ],
    ids=["sfda.runs", "sfda --help", "sfda compare --help", "a mistake in sfda compare", "sfda data check"],
)  # fmt: skip
def test_nothing_that_answers_at_once_imports_torch(code):
    loaded = loaded_by(f"{code}\nimport sys; print(','.join(sys.modules))")
    assert "sfda" in loaded
    assert "torch" not in loaded
    assert "lightning" not in loaded


@pytest.mark.medium
@pytest.mark.parametrize("first", ["sfda.methods.kinds.rebuild", "sfda.callbacks"])
def test_methods_can_be_imported_in_any_order(first):
    code = f"import {first}; from sfda.methods import Method, TrainedMethod, GatheredMethod, OnlineMethod, "
    code += "PostHocCalibration, PseudoLabelledMethod, TaughtMethod, ValueNetMethod"
    subprocess.run([sys.executable, "-c", code], check=True)
