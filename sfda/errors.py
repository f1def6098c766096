"""What ends a command: the one error that a user is meant to read, and signals."""

import difflib
import math
import signal
from collections.abc import Iterable
from typing import Literal


class UserError(Exception):
    """Something the user can mend: a path, an option, a file.

    The command line prints its text alone, without a traceback, and exits with status 2. The text names the file or
    the option and says what to do about it.
    """


class Interrupted(SystemExit):
    """A signal ends a command: the exit status is 128 + its number, as that of shells.

    Args:
        number: The signal.
        how_to_go_on: What the command line prints; "": nothing, as another process of the same run does.
    """

    def __init__(self, number: int, how_to_go_on: str = "") -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.how_to_go_on = how_to_go_on


def refuse_negative(**options: float) -> None:
    """Check options of a model: a `UserError` where one is below 0, or NaN."""
    refuse_outside(0, math.inf, "[]", **options)


def refuse_outside(low: float, high: float, ends: Literal["[]", "[)", "(]", "()"] = "[]", **options: float) -> None:
    """Check options of a model: a `UserError` where one lies outside of the interval, or is NaN.

    `ends` says which of `low` and `high` belong to it, as intervals are written; `high` may be infinite.
    """
    start = f"{'from' if ends[0] == '[' else 'above'} {low:g}"
    end = {"[]": " to", "(]": ", up to"}.get(ends, ", below") + f" {high:g}"
    left_out = {bound for bound, bracket in ((low, ends[0]), (high, ends[1])) if bracket in "()"}
    for option, value in options.items():
        if not low <= value <= high or value in left_out:
            raise UserError(f"model option {option}: a number {start}{end if high < math.inf else ' up'}, not {value}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among those that are known; "" where none is like it."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def last_line(error: BaseException) -> str:
    """Type and last line of an error of somebody else's network."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
