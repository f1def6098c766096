"""The one way in which tests start ``sfda`` in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfda.processes import started


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        status: Exit status; negative for a signal.
        output: Standard output and error.
    """

    status: int | None
    output: str


def run_sfda(folder: Path, *words: object, **environment: str) -> Done:
    """``sfda WORDS`` in a folder; torch is imported once for all calls of a test session, as `sfda compare` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with started([str(word) for word in words], **environment) as command:
            output = command.output.read()
    return Done(command.status, output)


def run_truly(folder: Path, *words: object, **environment: str) -> Done:
    """The same by the console script, as a user types it: it imports everything itself."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("sfda")), *map(str, words)],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return Done(done.returncode, done.stdout)
