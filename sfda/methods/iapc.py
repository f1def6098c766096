"""IAPC: importance-aware learning from the source model and prototype contrast on the target."""

import copy
import sys
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sfda.data.datasets import Batch, DomainBatch
from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.errors import UserError, refuse_negative, refuse_outside
from sfda.losses.class_balanced_cross_entropy import (
    class_balanced_cross_entropy,
    class_pixels,
    class_weights,
    update_absence,
)
from sfda.losses.entropy import mean_entropy
from sfda.losses.importance import Importance, pixel_importance
from sfda.losses.mean import mean_over_pixels
from sfda.losses.prototype_contrast import (
    cosine_similarities,
    feature_sums,
    nearest_prototype,
    prototype_symmetric_cross_entropy,
    resize_nearest,
    update_prototypes,
)
from sfda.methods.kinds.pseudo_labelled import PseudoLabelledMethod
from sfda.networks.batch_norm import average_running_statistics
from sfda.networks.ema import update_average
from sfda.networks.frozen import Frozen
from sfda.networks.segmenter import BACKBONE_16
from sfda.pseudo_labels.labelling import label_by_argmax
from sfda.pseudo_labels.store import PseudoLabelStore
from sfda.ranks import ALL_RANKS, sum_over_ranks

HEAD_LR = 10.0
"""Learning rate of the head as a multiple of `lr`."""


class IAPC(PseudoLabelledMethod):
    """Learns what domains share from the source model, and what is the target's own from prototypes of its features.

    Importance-aware and prototype-contrast learning (Cao et al., arXiv 2306.01598, section III), implemented from the
    published description. Three copies of the source model: one stays as it is, one trains, and a memory follows that
    as a moving average. Pseudo-labels are the source model's, averaged over scales and flips, without a threshold.

    The network that trains sees a photometrically augmented crop, the other two the plain one. It minimises, each
    times its weight,

    - ``importance`` L_IA: class-balanced cross-entropy on the pseudo-labels, times how far the source model's two best
      classes lie apart;
    - ``prototype_enhanced`` L_PE: the same without importance, where the nearest prototype is the pseudo-label's;
    - ``prototype_symmetric`` L_PS: cross-entropy of the logits on the nearest prototype, and of the similarities to
      the prototypes on the logits' class;
    - ``entropy`` L_ENT: mean entropy.

    The affine parameters of the BN layers do not train; their statistics follow the target. Scale and shift of other
    normalisation (LayerNorm, GroupNorm), which has no statistics, train like every other weight. L_IA is the paper's
    EDIK, L_PE and L_PS are its LDSK; a half whose weights are 0 is left out, and its copy of the network not evaluated.

    Args:
        importance: ``ratio`` 1 − p₂/p₁ of the source model's two best classes, ``difference`` p₁ − p₂, ``top1`` p₁.
        prototypes: Of every ``image`` by itself, or one set that follows the batches with ``momentum``.
        prototype_momentum: For ``momentum``: share of the old prototype.
        memory_momentum: Share of the old memory at an optimizer step; it must suit the number of steps.
        layer: Module of the network whose features are contrasted; None: the backbone's ``layer3``, as published,
            where it has one, else the last of the encoder's maps with at most 16 pixels per cell, as layer3's have.
        importance_weight: Weight of L_IA.
        enhanced_weight: Weight of L_PE.
        symmetric_weight: Weight of L_PS.
        entropy_weight: Weight of L_ENT.
        rare_weight: What a rare class weighs in the class-balanced cross-entropy, and again one that stays absent.
        poly_steps: Steps that the polynomial decay is laid out for, which may be more than are taken; None: the run's.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range, or the network has no such layer.
    """

    needs = Needs(target="images", view="weak_and_strong", wanted_classes=10)

    absence: Tensor
    memory_prototypes: Tensor

    def __init__(
        self,
        importance: Importance = "ratio",
        prototypes: Literal["image", "momentum"] = "image",
        prototype_momentum: float = 0.99,
        memory_momentum: float = 0.9999,
        layer: str | None = None,
        importance_weight: float = 0.2,
        enhanced_weight: float = 0.5,
        symmetric_weight: float = 0.04,
        entropy_weight: float = 2.0,
        rare_weight: float = 7.0,
        poly_steps: int | None = 100_000,
        **trained: Any,
    ) -> None:
        super().__init__(**trained)
        refuse_outside(0, 1, prototype_momentum=prototype_momentum, memory_momentum=memory_momentum)
        refuse_negative(importance_weight=importance_weight, enhanced_weight=enhanced_weight)
        refuse_negative(symmetric_weight=symmetric_weight, entropy_weight=entropy_weight, rare_weight=rare_weight)
        if poly_steps is not None and poly_steps < 1:
            raise UserError(f"model option poly_steps: at least 1, or null for the run's own steps, not {poly_steps}")
        self.importance = importance
        self.prototypes = prototypes
        self.prototype_momentum = prototype_momentum
        self.memory_momentum = memory_momentum
        self.layer = layer or ("layer3" if hasattr(self.network.parts()["backbone"], "layer3") else BACKBONE_16)
        self.importance_weight = importance_weight
        self.enhanced_weight = enhanced_weight
        self.symmetric_weight = symmetric_weight
        self.entropy_weight = entropy_weight
        self.rare_weight = rare_weight
        self.poly_steps = poly_steps
        self.source = Frozen(copy.deepcopy(self.network))
        self.memory = Frozen(copy.deepcopy(self.network))
        self.register_buffer("absence", torch.ones(trained["num_classes"]))
        # an unknown layer is found before hours of labelling
        self.feature_channels = self.network.feature_channels(self.layer)
        if prototypes == "momentum":
            self.register_buffer("memory_prototypes", torch.zeros(trained["num_classes"], self.feature_channels))

    def initialise_from_source(self) -> None:
        """All three copies."""
        super().initialise_from_source()
        for copied in (self.source, self.memory):
            copied.module.load_state_dict(self.network.state_dict())

    def prepare_fit(self) -> None:
        """Initial weights and labels, and a line about the features."""
        super().prepare_fit()
        if self.trainer.is_global_zero:
            sys.stdout.write(f"prototypes are of {self.feature_channels} features of layer {self.layer}\n")

    def make_labels(self, store: PseudoLabelStore) -> None:
        """The best class of the source model's probabilities, averaged over scales and flips."""

        def predict(images: Tensor) -> Tensor:
            return self.multi_scale_probabilities(images, (images.shape[-2], images.shape[-1]))

        batches = self.datamodule.plain_batches("target", self.device, title="making pseudo-labels")
        label_by_argmax(store, batches, predict)

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """All but BN's affine parameters; the head learns faster."""
        norms = [layer for layer in self.network.modules() if isinstance(layer, _BatchNorm)]
        left_out = {id(parameter) for layer in norms for parameter in layer.parameters()}
        head = [parameter for parameter in self.network.parts()["head"].parameters() if id(parameter) not in left_out]
        left_out |= {id(parameter) for parameter in head}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in left_out]
        return [{"name": "network", "params": rest}, {"name": "head", "params": head, "lr": HEAD_LR * self.lr}]

    def lr_factor(self, step: int) -> float:
        """As every method's, with the decay laid out for `poly_steps`."""
        if self.poly_steps is None:
            return super().lr_factor(step)
        return float(self.warmup_factor(step) * max(0.0, 1 - step / self.poly_steps) ** self.poly_power)

    def on_train_start(self) -> None:
        """A learning rate that reaches 0 long before the end is a mistake; the labels made so far are kept.

        Raises:
            UserError: the run takes more steps than `poly_steps`.
        """
        super().on_train_start()
        steps = int(self.trainer.estimated_stepping_batches)
        if self.poly_steps is not None and steps > self.poly_steps:
            raise UserError(
                f"model option poly_steps: the learning rate is 0 after {self.poly_steps} steps, but this run takes "
                f"{steps}: raise it, or give null for the run's own steps"
            )

    def after_optimizer_step(self) -> None:
        """The memory follows."""
        update_average(self.memory.module, self.network, self.memory_momentum)

    def make_ranks_equal(self) -> None:
        """The memory has BN layers too."""
        super().make_ranks_equal()
        average_running_statistics(self.memory)

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``importance``, ``prototype_enhanced``, ``prototype_symmetric`` and ``entropy``."""
        target = _pad(batch["target"], self.network.multiple)
        valid = target["valid"]
        logits, features = self.network.forward_features(target["strong"], self.layer)
        labels = target["pseudo_label"].masked_fill(~valid, IGNORE)
        balanced = class_balanced_cross_entropy(logits, labels, self._class_weights(labels))
        losses = {"entropy": self.entropy_weight * mean_entropy(logits, valid)}
        if self.importance_weight > 0:
            omega = pixel_importance(self.source(target["image"]).float().softmax(dim=1), self.importance)
            losses["importance"] = self.importance_weight * mean_over_pixels(omega * balanced, valid)
        if self.enhanced_weight > 0 or self.symmetric_weight > 0:
            prototypes, present = self._prototypes(target["image"], valid)
            size = (valid.shape[-2], valid.shape[-1])
            similarities = cosine_similarities(features, prototypes)
            nearest = resize_nearest(nearest_prototype(similarities, present), size)
            losses["prototype_enhanced"] = self.enhanced_weight * mean_over_pixels(
                torch.where(nearest == labels, balanced, 0), valid
            )
            losses["prototype_symmetric"] = self.symmetric_weight * prototype_symmetric_cross_entropy(
                logits, nearest, self.network.resize(similarities, size), present, valid, ALL_RANKS
            )
        return losses

    def _class_weights(self, labels: Tensor) -> Tensor:
        """Weights (C,) of the classes in the pseudo-labels (B, H, W) of this batch, all ranks together."""
        pixels = sum_over_ranks(class_pixels(labels, len(self.absence)))
        self.absence.copy_(update_absence(self.absence, pixels, self.rare_weight))
        return class_weights(pixels, labels.numel() * self.trainer.world_size, self.absence, self.rare_weight)

    def _prototypes(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The memory's prototypes (B or 1, C, D), of any length, and which there are, (B, C) bool."""
        logits, features = self.memory(images, features=self.layer)
        predicted = logits.argmax(dim=1).masked_fill(~valid, IGNORE)
        labels = resize_nearest(predicted, (features.shape[-2], features.shape[-1]))
        sums, counts = feature_sums(features, labels, logits.shape[1])
        if self.prototypes == "image":
            return sums, counts > 0
        sums, counts = sum_over_ranks(sums.sum(0)), sum_over_ranks(counts.sum(0))
        self.memory_prototypes.copy_(update_prototypes(self.memory_prototypes, sums, counts, self.prototype_momentum))
        return self.memory_prototypes[None], self.memory_prototypes.any(1).expand(len(images), -1)


def _pad(target: DomainBatch, multiple: int) -> DomainBatch:
    """A batch whose sides are multiples, as the network would pad it: features then cover what labels cover."""
    height, width = target["valid"].shape[-2:]
    margin = (0, -width % multiple, 0, -height % multiple)
    if not any(margin):
        return target
    padded = target.copy()
    padded["image"] = F.pad(target["image"], margin, mode="replicate")
    padded["strong"] = F.pad(target["strong"], margin, mode="replicate")
    padded["valid"] = F.pad(target["valid"], margin, value=False)
    padded["pseudo_label"] = F.pad(target["pseudo_label"], margin, value=IGNORE)
    return padded
