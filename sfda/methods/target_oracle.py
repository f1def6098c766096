"""The upper bound: supervised training on the target's own labels."""

from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.losses.cross_entropy import cross_entropy
from sfda.methods.kinds.trained import TrainedMethod


class TargetOracle(TrainedMethod):
    """Cross-entropy on labelled target images, from the source model: no adaptation can be fairly asked for more."""

    needs = Needs(target="labels", view="weak")

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``ce``."""
        target = batch["target"]
        return {"ce": cross_entropy(self.network(target["image"]).float(), target["label"])}
