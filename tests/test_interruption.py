"""A run that a signal ends says how it goes on, and a second command does not write into its folder."""

import json
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sfda.errors import UserError
from sfda.runs import lock
from tiny_runs import tiny_arguments, watched

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


@contextmanager
def held_by_another(folder: Path):
    """Another process holds the lock of a run folder; gives the process."""
    ready = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        lock.hold(folder, first=True)
        ready.set()
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    try:
        assert ready.wait(30)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture(autouse=True)
def nothing_held():
    yield
    lock.release()


@pytest.fixture(autouse=True)
def launched_by_nobody(monkeypatch):
    for name in ("MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)


# --------------------------------------------------------------------- the lock


def test_a_folder_in_use_names_who_uses_it_until_that_one_dies(tmp_path):
    with held_by_another(tmp_path) as process:
        for first in (True, False):
            refusal = rf"{tmp_path} is in use by process {process.pid} on .*, since 20.*`kill {process.pid}`"
            with pytest.raises(UserError, match=refusal):
                lock.hold(tmp_path, first=first)
        process.kill()
        process.join()
        lock.hold(tmp_path, first=True)
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_a_process_that_was_forked_keeps_no_lock(tmp_path):
    lock.hold(tmp_path, first=True)
    sleeper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    sleeper.start()  # as a loader's worker that outlives its fit
    lock.release()
    try:
        with held_by_another(tmp_path):
            pass
    finally:
        sleeper.kill()
        sleeper.join()


def test_the_other_ranks_of_a_launch_are_not_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1234")
    with held_by_another(tmp_path):
        lock.hold(tmp_path, first=False)
        monkeypatch.setenv("MASTER_PORT", "4321")
        with pytest.raises(UserError, match="in use"):
            lock.hold(tmp_path, first=False)
    lock.hold(tmp_path, first=False)
    with held_by_another(tmp_path):  # who only looked holds nothing
        pass


def test_a_file_system_without_locks_is_used_with_a_word(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with pytest.warns(UserWarning, match=r"locks are not supported there .*give no second command"):
        lock.hold(tmp_path, first=True)


@pytest.mark.medium
def test_no_command_writes_into_a_folder_in_use(town, source_model, sfda, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [*tiny_arguments("ada_bn", town, source_model), "--out", run]
    with held_by_another(run):
        assert sfda("fit", *arguments) == 2
        assert f"run folder {run} is in use by process" in capsys.readouterr().err
        assert [path.name for path in run.iterdir()] == [lock.NAME]
    assert sfda("fit", *arguments) == 0
    with held_by_another(run):  # which the end of the fit has made free
        assert sfda("validate", "--run", run) == 2
    assert sfda("validate", "--run", run) == 0


# --------------------------------------------------------------------- signals


def send(number: int, everybody: bool = False):
    def at_the_second_epoch(trainer, _):
        if trainer.current_epoch == 1 and trainer.is_global_zero:
            os.kill(os.getppid() if everybody else os.getpid(), number)
            time.sleep(60 if everybody else 0)

    return watched("on_train_batch_start", at_the_second_epoch)


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_fit_with_its_status_and_the_command_that_goes_on(number, town, sfda, tmp_path, capsys):
    run = tmp_path / "run"
    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    with send(number):
        assert sfda("fit", *tiny_arguments("source_training", town), "--trainer.max_epochs", 2, "--out", run) == (
            128 + number
        )
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == handlers
    error = capsys.readouterr().err.splitlines()
    assert error[-1] == f"sfda: interrupted ({number.name}); `sfda fit --run {run}` goes on from the last whole epoch"
    assert not (run / "result.json").exists()
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 0
    assert sfda("fit", "--run", run) == 0


@pytest.mark.medium
def test_a_signal_ends_all_of_two_processes(town, sfda, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [*tiny_arguments("source_training", town), "--trainer.max_epochs", 2, "--out", run]
    begun = time.monotonic()
    with send(signal.SIGTERM, everybody=True):
        assert sfda("fit", *arguments, "--data.init_args.batch_size", 2, *TWO) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 50
    for process in multiprocessing.active_children():
        process.join(5)
    assert not multiprocessing.active_children()
    assert f"`sfda fit --run {run}` goes on" in capsys.readouterr().err


@pytest.mark.medium
def test_a_signal_before_the_training_says_what_to_do(town, sfda, tmp_path, capsys):
    with watched("on_fit_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM)):
        assert sfda("fit", *tiny_arguments("source_training", town), "--out", tmp_path / "run") == 143
    assert "sfda: interrupted (SIGTERM); give the same command again" in capsys.readouterr().err


@pytest.mark.medium
def test_a_process_that_is_killed_ends_the_others_with_a_sentence(town, sfda, tmp_path, capsys):
    def kill(trainer, _):
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    arguments = [*tiny_arguments("source_training", town), "--data.init_args.batch_size", 2, "--out", tmp_path / "run"]
    begun = time.monotonic()
    with watched("on_train_batch_start", kill):
        assert sfda("fit", *arguments, *TWO) == 2
    assert time.monotonic() - begun < 50
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith(
        ("sfda: process 1 of this run has died (by signal SIGKILL)", "sfda: another")
    )


@pytest.mark.medium
def test_a_killed_loader_worker_is_a_sentence(town, sfda, tmp_path, capsys):
    def kill(*_):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    more = ["--data.init_args.num_workers", 2, "--data.init_args.samples_per_epoch", 400]  # than workers load ahead
    arguments = [*tiny_arguments("source_training", town), *more, "--out", tmp_path / "run"]
    with watched("on_train_batch_start", kill):
        assert sfda("fit", *arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("sfda: a process that reads images has died")
