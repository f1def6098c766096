"""A comparison that is killed, with all of its processes, ends as an undisturbed one when it is called again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sfda.callbacks.skipped_files import SkippedFiles
from sfda.cli.main import main
from small_experiments import write_small_experiments

pytestmark = pytest.mark.slow
EXPERIMENTS = ("self_training", "tent")
STAGES = ("source_training", *EXPERIMENTS)
KILLS = 5
FACTS = ("adapt_seconds", "peak_memory_mb", "config")
"""What differs between two runs of the same settings."""


@pytest.fixture(scope="module")
def folder(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with small experiments and a comparison of two."""
    folder = tmp_path_factory.mktemp("comparison")
    prepare(folder, town)
    return folder


def prepare(folder: Path, town: Path) -> None:
    write_small_experiments(folder, town)
    content = {"benchmark": "streets", "experiments": list(EXPERIMENTS), "seeds": [1]}
    (folder / "compare/two.yaml").write_text(yaml.safe_dump(content))


def compare(folder: Path, out: str, kill_at: int | None = None) -> tuple[int, list[str]]:
    """``sfda compare`` in a process group of its own, which is killed as a whole at an event.

    Returns:
        The exit status, negative for a signal, and the events up to there: batches, and every file that is half
        written, written beside its place, or in its place.
    """
    events = folder / f"{out}.events"
    process = multiprocessing.get_context("fork").Process(target=_compare, args=(folder, out, events, kill_at))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, events.read_text().splitlines()


def _compare(folder: Path, out: str, events: Path, kill_at: int | None) -> None:
    os.setsid()
    os.chdir(folder)
    events.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        _fork_from_here(patch)
        _tell_events(patch, events, kill_at)
        with (folder / f"{out}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os._exit(main(["compare", "compare/two.yaml", "--out", f"runs/{out}"]))


def _fork_from_here(patch: pytest.MonkeyPatch) -> None:
    """Commands are forks of this process, in whose group they are, rather than of a server that imports torch first."""
    patch.setattr("sfda.processes.preload", lambda: None)
    patch.setattr("sfda.runs.comparison.preload", lambda: None)
    get_context = multiprocessing.get_context
    patch.setattr(multiprocessing, "get_context", lambda method=None: get_context("fork"))


def _tell_events(patch: pytest.MonkeyPatch, events: Path, kill_at: int | None) -> None:
    def tell(what: str) -> None:
        with events.open("a") as file:  # of all processes, which take turns
            file.write(f"{what}\n")
            file.flush()
            if kill_at == events.read_text().count("\n"):
                os.killpg(0, signal.SIGKILL)

    write, replace = Path.write_bytes, Path.replace

    def written(path: Path, data: Any) -> None:
        write(path, memoryview(data)[: len(data) // 2])
        tell(f"half of {path.name}")
        write(path, data)

    def replaced(path: Path, target: Path) -> None:
        tell(f"all of {path.name}")
        replace(path, target)
        tell(f"{Path(target).parent.parent.name}: {Path(target).name}")

    patch.setattr(Path, "write_bytes", written)
    patch.setattr(Path, "replace", replaced)
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        before = getattr(SkippedFiles, hook)
        patch.setattr(SkippedFiles, hook, _telling(before, tell, hook))


def _telling(before: Any, tell: Any, hook: str) -> Any:
    def hooked(*arguments: Any, **options: Any) -> None:
        tell(hook)
        before(*arguments, **options)

    return hooked


def outcome(folder: Path, out: str) -> dict[str, Any]:
    """Rows and weights of all runs, without what clocks say."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        run = folder / "runs" / out / stage / "seed1"
        row = json.loads((run / "result.json").read_text())
        weights = torch.load(run / "selected.ckpt", weights_only=True)["state_dict"]
        found[stage] = {key: value for key, value in row.items() if key not in FACTS}
        found[f"{stage}, weights"] = {key: value.numpy().tobytes() for key, value in weights.items()}
        assert not list(run.rglob(".*.tmp")), "left behind"
    return found


def spread(events: Sequence[str], kills: int) -> list[int]:
    """Numbers of events (from 1), evenly over all, the last ones of the comparison's own files included."""
    return [round((number + 0.5) * len(events) / kills) for number in range(kills)]


def test_a_comparison_killed_at_any_time_ends_as_if_it_had_not_been(folder: Path) -> None:
    status, events = compare(folder, "whole")
    assert status == 0
    assert {"on_train_batch_start", "half of .last.ckpt.tmp", "tent: selected.ckpt"} <= set(events)
    expected = outcome(folder, "whole")
    assert expected["tent"]["target_miou"] is not None
    for number in spread(events, KILLS):
        out = f"killed{number}"
        assert compare(folder, out, kill_at=number)[0] == -signal.SIGKILL
        assert compare(folder, out)[0] == 0, (folder / f"{out}.log").read_text()
        assert outcome(folder, out) == expected, events[number - 1]
