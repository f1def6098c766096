"""DA-Cal without source: the frozen source model's confident pixels stand in for source labels."""

import copy
from typing import Any

import torch
from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.methods.da_cal import DACal
from sfda.methods.kinds.taught import Mix, TargetMix
from sfda.metrics.functional import at_least_float32, top_label
from sfda.networks.frozen import Frozen


class DACalSourceFree(TargetMix, DACal):
    """`DACal` from a source model alone, a variant of this project.

    Mixes are those of `MeanTeacherSourceFree`. Onto the complementary mixes the other half of the classes of the second
    target image is pasted; the outer loss is taken at those of their pixels that the frozen source model is sure of,
    with its classes.

    Args:
        **da_cal: Options of `DACal`.
    """

    needs = Needs(target="images", view="weak_and_strong")

    def __init__(self, **da_cal: Any) -> None:
        super().__init__(**da_cal)
        self.source = Frozen(copy.deepcopy(self.network))

    def initialise_from_source(self) -> None:
        """All three networks start from the source model; this one stays."""
        super().initialise_from_source()
        self.source.module.load_state_dict(self.network.state_dict())

    def outer_labels(self, batch: Batch, mix: Mix) -> Tensor:
        """The source model's classes where it is sure, 255 elsewhere: (B, H, W)."""
        target = batch["target"]
        confidence, classes = top_label(at_least_float32(self.source(target["image"])).softmax(dim=1))
        sure = (confidence >= self.threshold) & target["valid"]
        return torch.where(sure, classes.long(), IGNORE).roll(-1, 0).where(mix.rest, IGNORE)
