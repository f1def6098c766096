"""Callbacks that know what they are called with: a `Method`, not any LightningModule."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from sfda.data.datasets import DomainBatch
from sfda.methods import Method


class MethodCallback(Callback):
    """A callback whose hooks find the method at work in `method`."""

    method: Method

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Method)
        self.method = pl_module

    @override
    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs is not None:
            self.on_scored(self.method.domain_of(dataloader_idx), batch, outputs)

    def on_scored(self, domain: str, batch: DomainBatch, probabilities: Tensor) -> None:
        """Called after each validation batch, with its probabilities (B, C, H, W) over the scored classes."""
