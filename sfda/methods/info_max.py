"""Information maximisation: confident on every pixel, diverse over all of them."""

from typing import Any, Literal

from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import UserError
from sfda.losses.entropy import mean_entropy, mean_probability_entropy
from sfda.methods.kinds.trained import TrainedMethod
from sfda.networks.batch_norm import batch_norm_layers
from sfda.networks.normalisation import affine_parameters
from sfda.ranks import ALL_RANKS


class InfoMax(TrainedMethod):
    """Minimises mean H(p) − H(mean p) over the target pixels of a step; by default the classifier is frozen.

    SHOT-IM of "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
    Adaptation" (Liang et al., arXiv 2002.08546, section 3.2), implemented from the published description, which is of
    image classification. Classifier is all that comes after the encoder (decoder, ASPP, head). The mean prediction is
    that of the batches of all processes. A classifier that is frozen keeps its BN statistics.

    Args:
        trains: The ``backbone``, as published, or scale and shift of every ``normalisation`` layer of the whole network
            and nothing else. Then all layers but BatchNorm are in eval mode; BN layers normalise by the statistics of
            each batch, which their running statistics follow.
        lr: Learning rate; the paper trains its backbone with 1e-3.
        weight_decay: Weight decay.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: there is no normalisation layer with scale and shift to train.
    """

    needs = Needs(target="images", view="weak")
    optimises = ("entropy", "infomax")

    def __init__(
        self,
        trains: Literal["backbone", "normalisation"] = "backbone",
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        **trained: Any,
    ) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay, **trained)
        self.trains = trains
        if trains == "normalisation" and not self.trainable_parameters()[0]["params"]:
            raise UserError(
                f"InfoMax with trains: normalisation needs normalisation layers with scale and shift, and "
                f"{trained['network']} has none: give --model.init_args.trains backbone"
            )

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """The backbone's, or all scales and shifts."""
        if self.trains == "normalisation":
            return [{"name": "normalisation", "params": list(affine_parameters(self.network))}]
        return [{"name": "backbone", "params": list(self.network.parts()["backbone"].parameters())}]

    def set_modes(self) -> None:
        """What does not train in eval mode."""
        if self.trains == "backbone":
            self.network.parts()["classifier"].eval()
            return
        self.network.eval()
        for layer in batch_norm_layers(self.network).values():
            layer.train()

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``entropy`` mean H(p), and ``diversity`` −H(mean p)."""
        target = batch["target"]
        logits = self.network(target["image"])
        return {
            "entropy": mean_entropy(logits, target["valid"], ALL_RANKS),
            "diversity": -mean_probability_entropy(logits, target["valid"], ALL_RANKS),
        }
