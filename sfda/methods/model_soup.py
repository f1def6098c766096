"""Two short fits from one start, averaged: one learns averaged views, the other to be sure of every class."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import UserError, refuse_negative
from sfda.losses.entropy import class_equalised_entropy, mean_entropy, mean_probability_entropy
from sfda.losses.soft_cross_entropy import soft_cross_entropy
from sfda.methods.kinds.method import MULTI_SCALES, Views
from sfda.methods.kinds.scaled import ScaledMethod, mean_over_views
from sfda.methods.kinds.trained import TrainedMethod
from sfda.networks.frozen import Frozen
from sfda.networks.normalisation import affine_parameters
from sfda.networks.resampling import scale_images
from sfda.ranks import ALL_RANKS


class ModelSoup(ScaledMethod, TrainedMethod):
    """The mean of two networks that are trained beside each other from one start, and a share of the way to it.

    Best started from a checkpoint of `sfda.methods.auto.Auto`, at whose size it sees images. (Ours; weights of several
    fits from one start are averaged as in "Model soups", Wortsman et al., arXiv 2203.05482.) Of the two networks

    - one learns, on strong views, the probabilities of the frozen start averaged over three scales and their mirror
      images (`MULTI_SCALES`), and to be sure and diverse (InfoMax, arXiv 2002.08546): all of its parameters train;
    - the other lowers the entropy of its predictions, every predicted class counting the same, by scale and shift of
      its normalisation layers alone.

    Each alone is led astray where its loss is wrong; their mistakes differ, and `share` bounds them. All layers are in
    eval mode, so that BatchNorm's statistics are those of the start. Networks without scale and shift of normalisation
    layers have no second network.

    Args:
        infomax_weight: Weight of −InfoMax beside the averaged views.
        normalisation_lr: Learning rate of the second network.
        optimizer: As in `TrainedMethod`.
        lr: Learning rate of the first network.
        weight_decay: Weight decay.
        share: As in `TrainedMethod`; 0.5 leaves a quarter of either network's way.
        views: As in `Method`.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range, or `normalisation_lr` is not 0 and there is nothing for it to move.
    """

    needs = Needs(target="images", view="weak_and_strong")
    optimises = ("entropy", "infomax", "views")

    def __init__(
        self,
        infomax_weight: float = 0.3,
        normalisation_lr: float = 5e-4,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        share: float | Literal["auto"] = 0.5,
        views: Views = "multi_scale",
        **trained: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, lr=lr, weight_decay=weight_decay, share=share, views=views, **trained)
        refuse_negative(infomax_weight=infomax_weight, normalisation_lr=normalisation_lr)
        if normalisation_lr and next(affine_parameters(self.network), None) is None:
            raise UserError(
                f"model option normalisation_lr: {trained['network']} has no normalisation layer with scale and shift: "
                "give 0"
            )
        self.infomax_weight = infomax_weight
        self.normalisation_lr = normalisation_lr
        self.start = Frozen(copy.deepcopy(self.network))
        self.distilled = copy.deepcopy(self.network)
        self.sharpened = copy.deepcopy(self.network) if normalisation_lr else None

    @property
    def _students(self) -> list[nn.Module]:
        return [self.distilled, *([self.sharpened] if self.sharpened else [])]

    def initialise_from_source(self) -> None:
        """All networks."""
        super().initialise_from_source()
        for copied in (self.start.module, *self._students):
            copied.load_state_dict(self.network.state_dict())

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """All of the first network, scale and shift of the second."""
        groups: list[dict[str, Any]] = [{"name": "distilled", "params": list(self.distilled.parameters())}]
        if self.sharpened is not None:
            affine = list(affine_parameters(self.sharpened))
            groups.append({"name": "normalisation", "params": affine, "lr": self.normalisation_lr})
        return groups

    def set_modes(self) -> None:
        """Everything in eval mode."""
        self.eval()

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``views`` and ``infomax`` of the first network, ``entropy`` of the second."""
        target = batch["target"]
        valid, size = target["valid"], target["image"].shape[-2:]

        def logits(network: Any, images: Tensor) -> Tensor:
            found: Tensor = self.network.resize(network(images).float(), size)
            return found

        with torch.no_grad():
            scales = [scale * self.input_scale for scale in MULTI_SCALES]
            labels = mean_over_views(lambda view: logits(self.start, view).softmax(1), target["image"], scales)
        learnt = logits(self.distilled, scale_images(target["strong"], self.input_scale))
        losses = {"views": soft_cross_entropy(learnt, labels, valid=valid)}
        if self.infomax_weight:
            infomax = mean_probability_entropy(learnt, valid, ALL_RANKS) - mean_entropy(learnt, valid, ALL_RANKS)
            losses["infomax"] = -self.infomax_weight * infomax
        if self.sharpened is not None:
            sharpened = logits(self.sharpened, scale_images(target["image"], self.input_scale))
            losses["entropy"] = class_equalised_entropy(sharpened, valid, ALL_RANKS)
        return losses

    @torch.no_grad()
    def make_ranks_equal(self) -> None:
        """What is scored or saved in a fit is the mean of the two."""
        if self.trainer.state.fn != "fit":
            return
        weights = zip(*(student.parameters() for student in self._students), strict=True)
        for mean, each in zip(self.network.parameters(), weights, strict=True):
            mean.copy_(torch.stack(each).mean(0))
