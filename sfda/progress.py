"""Progress of whatever takes long: what it is, how far it is, and how long it still takes.

A bar on a terminal; in a log a line every few seconds, ``step 240/800  loss 1.32  65 s, about 150 s more``.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text
from typing_extensions import override

SECONDS_BETWEEN_LINES = 5.0
"""Between two lines of a pass in a log; a pass that is shorter prints none."""
SECONDS_BETWEEN_WORDS = 10.0
"""Between two lines of `status` in a log."""

Advance = Callable[[int], None]
"""Takes how many more are done."""
ShowProgress = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows a pass, by its title and how many there are of what it passes over."""


@runtime_checkable
class PassDisplay(Protocol):
    """A progress bar of the Trainer that can show passes outside of the Trainer's own loops."""

    def show_pass(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """See `ShowProgress`."""


def no_progress(title: str, total: int) -> AbstractContextManager[Advance]:
    """A `ShowProgress` that shows nothing."""
    return nullcontext(lambda count: None)


def duration(seconds: float) -> str:
    """``65 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"


def how_long(seconds: float, done: float, total: float) -> str:
    """Time spent and, at the same pace, time still needed: ``65 s, about 150 s more``.

    No estimate before anything is done, after all is done, or where `total` is infinite.
    """
    if not 0 < done < total < math.inf:
        return duration(seconds)
    return f"{duration(seconds)}, about {duration(seconds * (total - done) / done)} more"


class Pace:
    """Counts what is done of `total` and keeps the time; as text, `how_long`.

    `begun` of them were done before, by a process that this one goes on from.
    """

    def __init__(self, total: float, begun: int = 0) -> None:
        self.total = total
        self.begun = self.done = begun
        self.started = time.monotonic()

    def __str__(self) -> str:
        return how_long(time.monotonic() - self.started, self.done - self.begun, self.total - self.begun)


class Lines:
    """A pass in a log: a line every `SECONDS_BETWEEN_LINES` at most, and one at the end of a pass that takes longer.

    `write` takes a line, `title` says what is counted; `total` and `begun` are those of `Pace`.
    """

    def __init__(self, write: Callable[[str], object], title: str, total: float, begun: int = 0) -> None:
        self._write = write
        self._title = title
        self._pace = Pace(total, begun)
        self._next = SECONDS_BETWEEN_LINES

    def advance(self, count: int, detail: str = "") -> None:
        """Count, and write if it is time."""
        pace = self._pace
        pace.done += count
        seconds = time.monotonic() - pace.started
        if seconds >= (SECONDS_BETWEEN_LINES if pace.done >= pace.total else self._next):
            self._next = seconds + SECONDS_BETWEEN_LINES
            self._write(f"{self._title} {pace.done}/{pace.total:.0f}{detail}  {pace}")


def write_line(line: str) -> None:
    """Write to stdout, where a reader of the log sees it at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class TimeColumn(ProgressColumn):
    """Time spent and time still needed, worded as in a log."""

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))  # a narrow terminal shortens the bar instead

    @override
    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed or 0.0
        return Text(how_long(seconds, task.completed, task.total or math.inf))


@contextmanager
def progress(console: Console, title: str, total: int) -> Iterator[Advance]:
    """Show how far a loop is; yields the function that is told how many more are done."""
    if not console.is_terminal:
        yield Lines(lambda line: _print(console, line), title, total).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def status(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on where nobody knows its length; yields the function that is told the latest word of it.

    A spinner on a terminal; in a log the title, then the latest word every `SECONDS_BETWEEN_WORDS` at most.
    """
    if console.is_terminal:
        with console.status(Text(title)) as spinner:
            yield lambda word: spinner.update(Text(f"{title}: {word}"[: console.width - 4]))
        return
    _print(console, f"{title} ...")
    printed = time.monotonic()

    def say(word: str) -> None:
        nonlocal printed
        if time.monotonic() - printed >= SECONDS_BETWEEN_WORDS:
            printed = time.monotonic()
            _print(console, f"{title}: {word}")

    yield say


def _print(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)
    console.file.flush()


def table_console() -> Console:
    """A console whose tables are not squeezed where they go into a file: rich takes 80 columns there."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=120 if wide else None)
