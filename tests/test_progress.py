import io
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from lightning.pytorch.callbacks.progress import rich_progress
from rich.console import Console

from sfda import progress
from sfda.callbacks.progress_lines import ProgressLines
from sfda.progress import Lines, how_long, status
from tiny_runs import die, tiny_arguments


class Clock:
    """Stands in for `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)
    return fake


@pytest.mark.parametrize(
    ("seconds", "done", "total", "text"),
    [
        (65.2, 240, 800, "65 s, about 152 s more"),
        (3, 0, 800, "3 s"),  # nothing to estimate from
        (90, 800, 800, "90 s"),
        (90, 10, math.inf, "90 s"),
        (200, 1, 2, "3 min, about 3 min more"),
        (3600, 1, 8, "60 min, about 7.0 h more"),
    ],
)
def test_the_time_still_needed_follows_from_the_pace_so_far(seconds, done, total, text):
    assert how_long(seconds, done, total) == text


def test_a_slow_pass_prints_a_line_every_few_seconds_and_one_at_its_end(clock):
    written: list[str] = []
    lines = Lines(written.append, "labelling", 8)
    for _ in range(8):
        clock.now += 2
        lines.advance(1, "  loss 1.320")
    assert written == [
        "labelling 3/8  loss 1.320  6 s, about 10 s more",
        "labelling 6/8  loss 1.320  12 s, about 4 s more",
        "labelling 8/8  loss 1.320  16 s",
    ]


def test_a_short_pass_prints_nothing(clock):
    written: list[str] = []
    lines = Lines(written.append, "labelling", 8)
    for _ in range(8):
        clock.now += 0.6
        lines.advance(1)
    assert written == []


def test_a_resumed_pass_is_estimated_from_its_own_pace(clock):
    written: list[str] = []
    lines = Lines(written.append, "step", 100, begun=80)
    clock.now += 10
    lines.advance(5)
    assert written == ["step 85/100  10 s, about 30 s more"]


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_prints(clock, capsys, first):
    bar = ProgressLines()
    if not first:
        bar.disable()  # as Lightning does on all ranks but 0
    with bar.show_pass("labelling", 8) as advance:
        clock.now += 6
        advance(4)
    assert capsys.readouterr().out == ("labelling 4/8  6 s, about 6 s more\n" if first else "")


def test_a_status_in_a_log_is_a_line_every_ten_seconds(clock):
    file = io.StringIO()
    with status(Console(file=file, width=40), "1/2 streets/tent seed 1") as say:
        for step in range(12):
            clock.now += 2
            say(f"step {step}")
    assert file.getvalue().splitlines() == [
        "1/2 streets/tent seed 1 ...",
        "1/2 streets/tent seed 1: step 4",
        "1/2 streets/tent seed 1: step 9",
    ]


SHOWN = {
    "ada_bn": ["choosing α 16/16", "step 2/2", "scoring target 2/2"],
    "auto": ["trying size and statistics", "step 2/2", "scoring target 2/2"],
    "self_training": [
        "BatchNorm statistics 16/16",
        "predicting for pseudo-labels 16/16",
        "writing pseudo-labels 16/16",
        "looking at the source model 6/6",
        "step 2/2  loss",
        "scoring target 2/2",
    ],
    "iapc": ["making pseudo-labels 16/16"],
}


@pytest.mark.medium
@pytest.mark.parametrize("method", SHOWN)
def test_a_log_shows_every_pass_of_a_slow_fit(sfda, town, source_model, monkeypatch, capsys, method):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert sfda("fit", *tiny_arguments(method, town, source_model), "--trainer.enable_progress_bar", "true") == 0
    out = capsys.readouterr().out
    places = [out.find(f"{title}  " if title[-1].isdigit() else title) for title in SHOWN[method]]
    assert -1 not in places, out
    assert all(before < after for before, after in pairwise(places))
    assert " more\n" in out


@pytest.mark.medium
def test_a_terminal_shows_passes_and_the_whole_fit_in_one_display(sfda, town, source_model, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    # Otherwise the display is drawn ten times per second, and may miss what takes less time than that.
    monkeypatch.setattr(rich_progress, "_IS_INTERACTIVE", True)
    arguments = tiny_arguments("self_training", town, source_model)
    assert sfda("fit", *arguments, "--trainer.enable_progress_bar", "true") == 0
    out = capsys.readouterr().out
    for shown in (
        "predicting for pseudo-labels",
        "looking at the source model",
        "Epoch 0/0",
        "fit: ",
        "scoring target",
    ):
        assert shown in out


@pytest.mark.medium
def test_a_resumed_fit_counts_on_and_estimates_from_its_own_steps(sfda, town, source_model, monkeypatch, capsys):
    arguments = [*tiny_arguments("tent", town, source_model), "--trainer.enable_progress_bar", "true"]
    die([*arguments, "--trainer.max_epochs", "3"], Path("run"))
    capsys.readouterr()
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(progress, "how_long", lambda seconds, done, total: f"{done} of {total:.0f}")
    assert sfda("fit", "--run", "run") == 0
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [(line.split()[1], line.split("  ")[-1]) for line in steps] == [
        ("3/6", "1 of 4"),
        ("4/6", "2 of 4"),
        ("5/6", "3 of 4"),
        ("6/6", "4 of 4"),
    ]
