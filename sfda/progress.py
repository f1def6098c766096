"""Progress of a long loop: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a loop is; yields the function that is told how many more are done."""
    if not console.is_terminal:
        yield _lines(console, title, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(console: Console, title: str, total: int) -> Callable[[int], None]:
    started = printed = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal printed, done
        done += count
        now = time.monotonic()
        if done == total or now - printed >= SECONDS_BETWEEN_LINES:
            printed = now
            console.print(f"{title} {done}/{total}  {now - started:.0f} s", highlight=False)
            console.file.flush()

    return advance


def table_console() -> Console:
    """A console whose tables are not squeezed where they go into a file: rich takes 80 columns there."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=120 if wide else None)
