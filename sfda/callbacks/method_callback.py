"""Callbacks that know what they are called with: a `Method`, not any LightningModule."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from sfda.methods import Method


class MethodCallback(Callback):
    """A callback whose hooks find the method at work in `method`."""

    method: Method

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Method)
        self.method = pl_module
