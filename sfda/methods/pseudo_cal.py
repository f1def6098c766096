"""PseudoCal: calibrated on mixtures of unlabelled target images."""

from typing import Any, Literal

from sfda.data.datasets import Batch
from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.errors import UserError, refuse_outside
from sfda.methods.kinds.post_hoc import PostHocCalibration
from sfda.metrics.functional import top_label


class PseudoCal(PostHocCalibration):
    """T by the NLL of mixed images λ·a + (1 − λ)·b of the target, against the classes predicted in a.

    Implemented from the published description of Hu et al., "Pseudo-Calibration: Improving Predictive Uncertainty
    Estimation in Unsupervised Domain Adaptation" (ICML 2024, arXiv 2307.07489): where a and b are predicted
    differently, the mixture is wrong about as often as the method is on real target images. Every pixel is a sample
    of its own; b is the image before a in the batch.

    Args:
        share: λ, the share of the first image, 0.5 < λ < 1.
        pairs: Which pixels count: those where a and b are predicted as classes that are ``different``, as published,
            or ``all``.
        **base: Options of `Method`.

    Raises:
        UserError: `share` is out of its range, or a batch has one image.
    """

    needs = Needs(target="images", view="plain")

    def __init__(self, share: float = 0.65, pairs: Literal["different", "all"] = "different", **base: Any) -> None:
        super().__init__(**base)
        refuse_outside(0.5, 1, "()", share=share)
        self.share = share
        self.pairs = pairs

    def prepare_fit(self) -> None:
        """Make sure that there are pairs."""
        super().prepare_fit()
        if self.datamodule.batch_size < 2:
            raise UserError("PseudoCal mixes the images of a batch: give --data.init_args.batch_size 2 or more")

    def gather(self, batch: Batch) -> None:
        """Offer the pixels of the mixtures."""
        images, valid = batch["target"]["image"], batch["target"]["valid"]
        if len(images) < 2:
            return
        predicted = top_label(self.uncalibrated_probabilities(images))[1].long()
        counts = valid & valid.roll(1, 0)
        if self.pairs == "different":
            counts = counts & (predicted != predicted.roll(1, 0))
        mixtures = self.share * images + (1 - self.share) * images.roll(1, 0)
        self.add(self.uncalibrated_probabilities(mixtures), predicted.masked_fill(~counts, IGNORE))
