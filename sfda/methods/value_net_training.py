"""The value net: trained on source to estimate an image's calibration error."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import UserError, refuse_outside
from sfda.losses.calibration import image_ece
from sfda.methods.kinds.value_net import ValueNetMethod, has_labels
from sfda.metrics.ece_estimate import FirstAndLast
from sfda.networks.batch_norm import average_running_statistics
from sfda.networks.value_net import ValueNet

UNMOVED = 0.05
"""A mean estimate that ends no further from its start has not moved."""


class ValueNetTraining(ValueNetMethod):
    """Trains the value net on labelled source images; the segmenter is the source model's, frozen and in eval mode.

    Stage 2 of Cal-SFDA (arXiv 2308.03003), implemented from the published description: the loss is the mean of
    (estimate − ECE)² over the images of a batch, where ECE is the class-averaged calibration error of the image,
    detached; images without a labelled pixel are left out. The learning rate is divided by √2 after every epoch. A fit
    whose mean estimate ends where it began, away from the truth, warns.

    The checkpoint holds the source model's network, unchanged, and the value net.

    Args:
        bins: Confidence bins M of the ECE that is learnt.
        poly_power: Polynomial decay beside the division by √2; published: none.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range, or `share` is not 1.
    """

    needs = Needs(source="labels", view="weak")
    value_net: ValueNet

    def __init__(self, bins: int = 10, poly_power: float = 0.0, **trained: Any) -> None:
        super().__init__(poly_power=poly_power, **trained)
        refuse_outside(1, math.inf, bins=bins)
        if self.share != 1:
            raise UserError(f"model option share: the segmenter does not train here: give 1, not {self.share}")
        self.bins = bins
        self._course = FirstAndLast()

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """The value net alone."""
        return [{"name": "value_net", "params": list(self.value_net.parameters())}]

    def set_modes(self) -> None:
        """The segmenter stands still, its BN statistics and dropout too."""
        self.network.eval()

    def lr_factor(self, step: int) -> float:
        """Divided by √2 after every epoch."""
        factor = super().lr_factor(step)
        if step == 0:  # the Trainer does not know its batches yet
            return factor
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return float(factor * 2 ** (-(step // steps) / 2))

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``mse`` of the estimated ECE."""
        images, labels = batch["source"]["image"], batch["source"]["label"]
        with torch.no_grad():
            logits, features = self.network.forward_features(images)
            truths = image_ece(logits.float().softmax(dim=1), labels, bins=self.bins, absent=self.absent)
        labelled, estimates = has_labels(labels), self.value_net(features)
        self._course.add(estimates, truths, labelled)
        errors = (estimates - truths).square() * labelled
        return {"mse": errors.sum() / labelled.sum().clamp(min=1)}

    def make_ranks_equal(self) -> None:
        """The value net alone: the frozen network is equal already, and a mean of equal statistics may be rounded."""
        average_running_statistics(self.value_net)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["first_estimates"] = self._course.first

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._course.first = list(checkpoint.get("first_estimates", []))

    def on_train_end(self) -> None:
        """Say so if the mean estimate is where it was, and the truth is elsewhere."""
        start, end, truth = self._course.means()
        if abs(end - start) <= UNMOVED < abs(end - truth) and self.trainer.is_global_zero:
            warnings.warn(
                f"ValueNetTraining: the mean estimated ECE is {end:.2f} after {self.trainer.global_step} steps, was "
                f"{start:.2f} at the start, and the true one is {truth:.2f}: the value net has not learnt its level; "
                "raise --model.init_args.lr, or --trainer.gradient_clip_val where gradients are clipped",
                stacklevel=1,
            )
