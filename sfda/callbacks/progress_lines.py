"""Progress for a log file: a line every few seconds instead of a bar that redraws itself."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from sfda.methods.base import Method


class ProgressLines(ProgressBar):
    """Prints ``step 240/800  loss 1.32  0:02:10`` at most every `every` seconds."""

    def __init__(self, every: float = 5.0) -> None:
        super().__init__()
        self.every = every
        self._enabled = True
        self._started = self._printed = time.monotonic()

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def disable(self) -> None:
        """Be silent, as on all ranks but the first."""
        self._enabled = False

    def _print(self, text: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._enabled and (force or now - self._printed >= self.every):
            self._printed = now
            sys.stdout.write(f"{text}  {now - self._started:.0f} s\n")
            sys.stdout.flush()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step and the loss."""
        per_epoch = int(self.total_train_batches)
        epochs = trainer.max_epochs or 1
        done = trainer.current_epoch * per_epoch + batch_idx + 1
        loss = self.get_metrics(trainer, pl_module).get("train/loss")
        text = f"step {done}/{per_epoch * epochs}" + (f"  loss {loss:.3f}" if isinstance(loss, float) else "")
        self._print(text, force=done == per_epoch * epochs)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The batch of the validation set."""
        if trainer.state.fn == "validate":
            assert isinstance(pl_module, Method)
            domain = list(pl_module.datamodule.validation_sets)[dataloader_idx]
            total = int(trainer.num_val_batches[dataloader_idx])
            self._print(f"scoring {domain} {batch_idx + 1}/{total}", force=batch_idx + 1 == total)
