"""The demo, run once for everything that looks at it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_command(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``sfda WORDS`` in a process and a folder of its own."""
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "sfda.cli", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.fixture(scope="session")
def run_sfda():
    return run_command


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A working directory in which the demo has run."""
    cwd = tmp_path_factory.mktemp("newcomer")
    done = run_command(cwd, "compare", "compare/demo.yaml", "--out", "runs/demo")
    assert done.returncode == 0, done.stderr
    (cwd / "printed.txt").write_text(done.stdout)
    return cwd
