"""Methods that look at the images once and then change the network without a gradient."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from sfda.methods.base import Method

if TYPE_CHECKING:
    from sfda.data.datasets import Batch


class GatheredMethod(Method):
    """One pass of `gather` over the training images, then `finish`; no optimizer.

    The pass is an ordinary epoch of the Trainer under manual optimisation: parameters keep ``requires_grad``, since
    DDP refuses a module without any, and nothing ever calls backward.

    Args:
        **base: Options of `Method`.
    """

    training_view = "plain"

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.automatic_optimization = False

    @abstractmethod
    def gather(self, batch: Batch) -> None:
        """Look at a batch; called without gradients and with the network in eval mode."""

    @abstractmethod
    def finish(self) -> None:
        """Change the network from what was gathered; called once, after the last batch and before validation."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather; after the last batch of the last epoch, finish."""
        self.network.eval()
        with torch.no_grad():
            self.gather(batch)
            last_epoch = self.trainer.current_epoch + 1 == self.trainer.max_epochs
            if last_epoch and self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self.finish()

    def configure_optimizers(self) -> None:
        """None."""
