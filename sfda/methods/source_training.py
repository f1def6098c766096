"""Supervised training on the source domain with a differentiable calibration error."""

import math
from typing import Any, Literal

from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import refuse_negative, refuse_outside
from sfda.losses.calibration import classwise_ece
from sfda.losses.cross_entropy import cross_entropy
from sfda.methods.kinds.trained import TrainedMethod
from sfda.networks.build import build_network


class SourceTraining(TrainedMethod):
    """Cross-entropy + α · differentiable class-wise ECE on labelled source images.

    Stage 1 of Cal-SFDA (arXiv 2308.03003, section 3.3.1), implemented from the published description; with α = 0 the
    plain source training that every method may start from.

    Args:
        alpha: Weight α of the calibration term.
        bins: Confidence bins M of the calibration term.
        temperature: t of the soft maximum t·logsumexp(p/t).
        absent: What a class absent from an image counts in the calibration term: left out (``skip``), or 0 (``zero``).
        pretrained: ``imagenet`` fetches torchvision's or smp's own ImageNet weights when the training starts.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range.
    """

    needs = Needs(source="labels", view="weak")

    def __init__(
        self,
        alpha: float = 1.0,
        bins: int = 10,
        temperature: float = 1e-5,
        absent: Literal["skip", "zero"] = "skip",
        pretrained: Literal["none", "imagenet"] = "none",
        **trained: Any,
    ) -> None:
        super().__init__(**trained)
        refuse_negative(alpha=alpha)
        refuse_outside(1, math.inf, bins=bins)
        refuse_outside(0, math.inf, "(]", temperature=temperature)
        self.alpha = alpha
        self.bins = bins
        self.temperature = temperature
        self.absent = absent
        self.pretrained = pretrained

    def initialise_from_source(self) -> None:
        """From scratch, from ImageNet, or, where one is given, from a source checkpoint."""
        if self.source_checkpoint is not None:
            super().initialise_from_source()
        elif self.pretrained == "imagenet":
            self.network = build_network(
                self.hparams["network"], self.hparams["num_classes"], "imagenet", self.hparams["network_options"]
            )

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``ce``, and ``ece`` where α > 0."""
        source = batch["source"]
        logits = self.network(source["image"]).float()
        losses = {"ce": cross_entropy(logits, source["label"])}
        if self.alpha > 0:
            calibration = classwise_ece(
                logits.softmax(dim=1), source["label"], bins=self.bins, temperature=self.temperature, absent=self.absent
            )
            losses["ece"] = self.alpha * calibration
        return losses
