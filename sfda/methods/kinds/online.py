"""Methods that can follow a stream while they are scored."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.sampling import run_seed
from sfda.errors import UserError
from sfda.methods.kinds.method import Method
from sfda.methods.kinds.trained import TrainedMethod


class OnlineMethod(Method):
    """With `online` there is no fit: `sfda validate` predicts each target batch, then calls `adapt_online` with it."""

    online: bool = False

    @classmethod
    def has_fit_with(cls, options: Mapping[str, Any]) -> bool:
        """Online the method adapts while it is scored."""
        return not options.get("online") and super().has_fit_with(options)

    def setup(self, stage: str) -> None:
        """Prepare a run on one process.

        Raises:
            UserError: an online run with several processes.
        """
        if self.online and self.trainer.world_size > 1:
            raise UserError("online: true follows one stream in its order: use one process, --trainer.devices 1")
        super().setup(stage)


class OnlineTrainedMethod(OnlineMethod, TrainedMethod):
    """Online it takes one optimizer step per batch, from the source model on, with a constant learning rate."""

    stream_steps: int = 0
    """Batches of the stream that it has learnt from."""

    def setup(self, stage: str) -> None:
        """Prepare a run.

        Raises:
            UserError: an online run with a share.
        """
        if self.online and self.share != 1:
            raise UserError(f"model option share: a stream has no end to go back from: give 1, not {self.share}")
        super().setup(stage)

    def shared_draws(self) -> np.random.Generator:
        """In a stream too the randomness of a batch is a function of seed and step."""
        return np.random.default_rng([run_seed(), self.stream_steps]) if self.online else super().shared_draws()

    def online_losses(self, images: Tensor) -> dict[str, Tensor]:
        """The losses of a batch of the stream, images (B, 3, H, W): those of a fit, without padding."""
        valid = torch.ones_like(images[:, 0], dtype=torch.bool)
        batch: Batch = {"target": {"image": images, "valid": valid, "name": []}}
        return self.compute_losses(batch)

    def on_validation_start(self) -> None:
        """A stream begins with the source model."""
        super().on_validation_start()
        if self.online:
            self._begin_stream()

    def _begin_stream(self) -> None:
        if self._has_run_weights:  # a checkpoint holds the end of an earlier stream
            self.initialise_from_source()
        self.train_only_what_is_trained()
        self.stream_steps = 0
        self._optimizer: torch.optim.Optimizer = self.configure_optimizers()["optimizer"]
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"]  # a stream knows no number of steps to warm up or decay over

    def adapt_online(self, images: Tensor) -> None:
        """One step on a batch that has been predicted."""
        if not self.online:
            return
        # Validation runs in inference mode, whose tensors can take part in no gradient.
        with torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(int(self.shared_draws().integers(2**32)))  # dropout
            loss = torch.stack(list(self.online_losses(images.clone()).values())).sum()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self.after_optimizer_step()
            self.stream_steps += 1
