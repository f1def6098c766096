"""Signals that end a run: at once, with a status of their own. What is written is whole, so nothing has to wait."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from sfda.errors import Interrupted

PATIENCE = 10
"""Seconds in which other ranks may end by themselves."""


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the second one would disturb what is put away
    raise Interrupted(number)


def _listen() -> None:
    if threading.current_thread() is threading.main_thread():  # no other one may
        signal.signal(signal.SIGTERM, _end)


class EndsAtOnce(Callback):
    """SIGTERM ends a run at once rather than after the batch.

    In place of the Trainer's own handler, which ends a run with status 0 and, with several processes, broadcasts from
    within the handler while the others may be in the middle of another exchange.
    """

    @override
    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _listen()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _listen()

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _listen()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM raises `Interrupted` inside the block; handlers are as before after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _listen()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def end_ranks(trainer: L.Trainer) -> None:
    """End the further processes that this one's launcher has started; what does not end by itself is killed."""
    launcher = trainer.strategy.launcher
    if launcher is None:
        return
    launcher.kill(signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while any(_is_alive(process) for process in getattr(launcher, "procs", ())) and time.monotonic() < until:
        time.sleep(0.05)
    launcher.kill(signal.SIGKILL)  # one that waits for another of them in a collective hears no other signal


def _is_alive(process: Any) -> bool:
    return process.is_alive() if hasattr(process, "is_alive") else process.poll() is None


def signal_behind(end: SystemExit) -> int | None:
    """The signal that made the Trainer end; None where it was none."""
    if isinstance(end, Interrupted):
        return int(end.signal)
    if isinstance(end, SIGTERMException):
        return int(signal.SIGTERM)
    return int(signal.SIGINT) if isinstance(end.__context__, KeyboardInterrupt) else None
