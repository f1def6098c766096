"""Progress of a Trainer: lines in a log, bars on a terminal; each with the time that is still needed."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text
from typing_extensions import override

from sfda.methods.kinds.method import Method
from sfda.progress import Advance, Lines, Pace, TimeColumn, write_line


def batches_of_fit(trainer: L.Trainer) -> float:
    """Training batches of the whole fit on this process; infinite where nothing but time ends it."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    return min(epochs * trainer.num_training_batches, steps * trainer.accumulate_grad_batches)


def batches_done(trainer: L.Trainer) -> int:
    """Training batches so far, those before a resume included."""
    return int(trainer.fit_loop.epoch_loop.total_batch_idx) + 1


def _scoring(trainer: L.Trainer, dataloader_idx: int) -> str:
    method = trainer.lightning_module
    assert isinstance(method, Method)
    return f"scoring {method.domain_of(dataloader_idx)}"


class ProgressLines(ProgressBar):
    """For a log: ``step 240/800  loss 1.32  65 s, about 150 s more`` every few seconds; see `sfda.progress.Lines`."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def disable(self) -> None:
        self._enabled = False

    def show_pass(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """See `sfda.progress.ShowProgress`."""
        return nullcontext(Lines(self._write, title, total).advance)

    def _write(self, line: str) -> None:
        if self._enabled:
            write_line(line)

    @override
    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._steps = Lines(self._write, "step", batches_of_fit(trainer), batches_done(trainer))

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        loss = trainer.progress_bar_metrics.get("train/loss")
        self._steps.advance(1, f"  loss {loss:.3f}" if isinstance(loss, float) else "")

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            total = trainer.num_val_batches[dataloader_idx]
            self._scored = Lines(self._write, _scoring(trainer, dataloader_idx), total)

    @override
    def on_validation_batch_end(self, *_: Any) -> None:
        self._scored.advance(1)


class ProgressBars(RichProgressBar):
    """For a terminal: Lightning's bars, but with the time of the whole fit beside the epoch.

    Passes outside of the Trainer's own loops are bars of the same display, since a terminal has room for one alone.
    """

    fit: Pace | None = None

    @property
    @override
    def validation_description(self) -> str:
        return _scoring(self.trainer, self._current_eval_dataloader_idx or 0)

    @override
    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        return [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _TimeOfFit(self)]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.fit = Pace(batches_of_fit(trainer), batches_done(trainer))

    @override
    def on_train_batch_end(self, *arguments: Any) -> None:
        assert self.fit is not None
        self.fit.done += 1
        super().on_train_batch_end(*arguments)

    @contextmanager
    def show_pass(self, title: str, total: int) -> Iterator[Advance]:
        """See `sfda.progress.ShowProgress`; other bars are hidden meanwhile, as their estimates would be wrong."""
        if self.is_disabled:
            yield lambda count: None
            return
        self._init_progress(self.trainer)  # the Trainer does so later, and then keeps it
        assert self.progress is not None
        display = self.progress
        hidden = [bar.id for bar in display.tasks if bar.visible]
        self._set_visible(hidden, False)
        bar = display.add_task(title, total=total)
        try:
            yield lambda count: display.update(bar, advance=count, refresh=True)
        finally:
            self._set_visible([bar], False)
            self._set_visible(hidden, True)

    def _set_visible(self, bars: list[TaskID], visible: bool) -> None:
        assert self.progress is not None
        for bar in bars:
            self.progress.update(bar, visible=visible, refresh=True)


class _TimeOfFit(TimeColumn):
    """Of a training epoch the time of the whole fit, of all else its own."""

    def __init__(self, bars: ProgressBars) -> None:
        super().__init__()
        self._bars = bars

    @override
    def render(self, task: Task) -> Text:
        if task.id == self._bars.train_progress_bar_id and self._bars.fit is not None:
            return Text(f"fit: {self._bars.fit}")
        return super().render(task)
