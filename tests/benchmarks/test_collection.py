"""`make bench` finds its files, and every one of them can be imported."""

import importlib.util
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("bench_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert any(name.startswith("test_") for name in vars(module))
