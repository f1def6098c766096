"""Says which pairs of files were left out, and why."""

import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class SkippedFiles(Callback):
    """Warns of every bad pair once, when it is first met, and of their number at the end; each rank of its own."""

    def __init__(self) -> None:
        self.skipped: set[str] = set()

    def _note(self, batch: dict[str, Any]) -> None:
        for part in [batch] if "skipped" in batch else batch.values():
            for message in part["skipped"]:
                if message not in self.skipped:
                    self.skipped.add(message)
                    warnings.warn(f"left out: {message}", stacklevel=1)

    def _sum_up(self) -> None:
        if self.skipped:
            warnings.warn(f"{len(self.skipped)} bad pairs were left out; each is named above", stacklevel=1)

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self._note(batch)

    @override
    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self._note(batch)

    @override
    def on_fit_end(self, *_: Any) -> None:
        self._sum_up()

    @override
    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate":
            self._sum_up()
