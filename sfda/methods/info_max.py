"""Information maximisation: confident on every pixel, diverse over all of them."""

from typing import Any

from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.losses.entropy import mean_entropy, mean_probability_entropy
from sfda.methods.kinds.trained import TrainedMethod
from sfda.ranks import ALL_RANKS


class InfoMax(TrainedMethod):
    """Minimises mean H(p) − H(mean p) over the target pixels of a step; the classifier is frozen, its BN too.

    SHOT-IM of "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
    Adaptation" (Liang et al., arXiv 2002.08546, section 3.2), implemented from the published description, which is of
    image classification. Classifier is all that comes after the encoder (decoder, ASPP, head). The mean prediction is
    that of the batches of all processes.

    Args:
        lr: Learning rate; the paper trains its backbone with 1e-3.
        weight_decay: Weight decay.
        **trained: Options of `TrainedMethod`.
    """

    needs = Needs(target="images", view="weak")

    def __init__(self, lr: float = 1e-3, weight_decay: float = 1e-3, **trained: Any) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay, **trained)

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """The backbone's."""
        return [{"name": "backbone", "params": list(self.network.parts()["backbone"].parameters())}]

    def set_modes(self) -> None:
        """The classifier in eval mode."""
        self.network.parts()["classifier"].eval()

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``entropy`` mean H(p), and ``diversity`` −H(mean p)."""
        target = batch["target"]
        logits = self.network(target["image"])
        return {
            "entropy": mean_entropy(logits, target["valid"], ALL_RANKS),
            "diversity": -mean_probability_entropy(logits, target["valid"], ALL_RANKS),
        }
