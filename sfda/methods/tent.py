"""Entropy minimisation that moves normalisation layers alone."""

from typing import Any, Literal

from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import UserError
from sfda.losses.entropy import mean_entropy
from sfda.methods.kinds.online import OnlineTrainedMethod
from sfda.methods.kinds.target_statistics import target_statistics
from sfda.networks.batch_norm import (
    BatchStatistics,
    batch_norm_layers,
    keep_lone_values,
    mix_statistics,
    read_statistics,
)
from sfda.networks.normalisation import affine_parameters


class Tent(OnlineTrainedMethod):
    """Minimises the mean entropy of the predictions by scale and shift of normalisation layers, and of nothing else.

    Implemented from the published description of "Tent: Fully Test-Time Adaptation by Entropy Minimization" (Wang et
    al., arXiv 2006.10726, section 3). BN layers normalise by the statistics of each batch while adapting; all other
    layers are in eval mode, so that what is minimised is what is predicted. Other normalisation (LayerNorm, GroupNorm,
    InstanceNorm) has no statistics to follow: there only scale and shift change.

    In a fit the running statistics are estimated on target images at every validation and epoch end (as in `AdaBN`
    with α = 1), and predictions are made with those, in eval mode.

    Online there is no fit: `sfda validate` predicts each batch of the target with the statistics of that very batch,
    then takes one step on it, from the source model on and with a constant learning rate. The source domain is scored
    after that. Checkpoints of such a run predict with batch statistics as well.

    Args:
        online: Follow a stream in `sfda validate`.
        optimizer: As in `TrainedMethod`; AdamW without decay is the paper's Adam.
        lr: Learning rate.
        weight_decay: Weight decay.
        poly_power: As in `TrainedMethod`; 0 keeps the learning rate.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: the network has no normalisation layer with scale and shift.
    """

    needs = Needs(target="images", view="weak")
    optimises = ("entropy", "infomax")

    def __init__(
        self,
        online: bool = False,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        poly_power: float = 0.0,
        **trained: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, lr=lr, weight_decay=weight_decay, poly_power=poly_power, **trained)
        if not self.trainable_parameters()[0]["params"]:
            raise UserError(
                f"Tent trains scale and shift of normalisation layers, and {trained['network']} has none: take "
                "info_max, cotta or mean_teacher_source_free, or average predictions with "
                "--model.init_args.views multi_scale"
            )
        self.online = online
        self._estimated = False
        if online:
            keep_lone_values(self.network)

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """Scale and shift of every normalisation layer."""
        return [{"name": "normalisation", "params": list(affine_parameters(self.network))}]

    def set_modes(self) -> None:
        """BN layers in train mode, which moves their running statistics; all others in eval mode."""
        self._estimated = False
        self.network.eval()
        for layer in batch_norm_layers(self.network).values():
            layer.train()

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``entropy``."""
        target = batch["target"]
        return {"entropy": mean_entropy(self.network(target["image"]), target["valid"])}

    def make_ranks_equal(self) -> None:
        """What is scored or saved in a fit has the target's statistics, estimated once after the last step."""
        super().make_ranks_equal()
        if self._estimated or self.trainer.state.fn != "fit":
            return
        self._estimated = True
        estimated = target_statistics(self, self.network, self.network)
        mix_statistics(self.network, read_statistics(self.network), estimated, alpha=1.0)

    def single_view_probabilities(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Online with the statistics of the images at hand; see `Method.single_view_probabilities`."""
        if not self.online:
            return super().single_view_probabilities(images, size)
        with BatchStatistics(self.network):
            return super().single_view_probabilities(images, size)

    def online_losses(self, images: Tensor) -> dict[str, Tensor]:
        """``entropy`` under the statistics of the batch, which leave the running ones alone."""
        with BatchStatistics(self.network):
            return super().online_losses(images)
