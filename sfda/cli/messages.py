"""The libraries' warnings, without what nobody can act on."""

from __future__ import annotations

import sys
from typing import TextIO

QUIET = (
    "args parameter is intended to run from within Python",
    "does not have many workers",
    "exists and is not empty",
    "is smaller than the logging interval",
    "configure_optimizers. returned .None.",
    "treespec, LeafSpec",
    "GPU available but not used",
    "lr_scheduler.step",
    "in eval mode at the start of training",
)
"""Parts of warnings that are not shown."""


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a user reads it, without the place in our code."""
    sys.stderr.write(f"warning: {message}\n")
