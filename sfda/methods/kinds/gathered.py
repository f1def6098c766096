"""Methods that look at the images once and then change the network without a gradient."""

from abc import abstractmethod
from typing import Any

import torch
from typing_extensions import override

from sfda.data.datasets import Batch, has_images
from sfda.methods.kinds.method import Method
from sfda.networks.finite import refusing_nan


class GatheredMethod(Method):
    """One pass of `gather` over the training images, then `finish`; no optimizer.

    Its `needs` usually name the view ``plain``: whole images, as they are validated.

    The pass is an ordinary epoch of the Trainer under manual optimisation: parameters keep ``requires_grad``, since
    DDP refuses a module without any, and nothing ever calls backward.

    Args:
        **base: Options of `Method`.
    """

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.automatic_optimization = False
        self._finished = False

    def prepare_fit(self) -> None:
        """Initial weights; one pass is all there is."""
        super().prepare_fit()
        self.trainer.fit_loop.max_epochs = 1

    @abstractmethod
    def gather(self, batch: Batch) -> None:
        """Look at a batch; called without gradients and with the network in eval mode."""

    @abstractmethod
    def finish(self) -> None:
        """Change the network from what was gathered; called once, after the last batch and before validation."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather; after the last batch, finish.

        Raises:
            UserError: the network gives NaN for an image.
        """
        self.network.eval()
        with torch.no_grad():
            if has_images(batch):
                names = [name for part in batch.values() for name in part["name"]]
                with refusing_nan(self.network, names, self.advice_against_nan):
                    self.gather(batch)
            if self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self.finish()
                self._finished = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """No checkpoint is written before the end, so a resumed run has nothing left to gather."""
        super().on_load_checkpoint(checkpoint)
        self._finished = True

    @property
    def fit_is_complete(self) -> bool:
        """A pass that was cut short has changed nothing."""
        return self._finished

    @override
    def configure_optimizers(self) -> None:
        return None
