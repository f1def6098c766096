"""Uncertainty reduction: heads that see damaged features have to agree with the head that does not."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfda.data.label_spaces import IGNORE
from sfda.errors import UserError, refuse_negative
from sfda.losses.cross_entropy import cross_entropy
from sfda.losses.entropy import mean_entropy
from sfda.methods.trained import TrainedMethod
from sfda.metrics.functional import at_least_float32, top_label
from sfda.networks.segmenter import HEAD_INPUT, padded_size

if TYPE_CHECKING:
    from sfda.data.datasets import Batch


class URMA(TrainedMethod):
    """Pseudo-labels, entropy, and agreement of auxiliary heads behind dropout with the main one.

    Sivaprasad and Fleuret, "Uncertainty Reduction for Model Adaptation in Semantic Segmentation" (CVPR 2021),
    implemented from the published description, with its weights, number of heads and optimizer. Every auxiliary head
    starts as a copy of the network's head and sees its features behind a channel dropout of its own. Pseudo-labels are
    the main head's own confident predictions of the moment (the authors' code fixes class-balanced ones beforehand).
    The auxiliary heads are saved with the network and take no part in predictions.

    Args:
        confidence_threshold: Confidence in [0, 1] from which a prediction is a pseudo-label; the value is ours.
        heads: Number K of auxiliary heads.
        dropout: Probability with which a channel of the features is dropped.
        entropy_weight: Weight of mean H(p) / ln C.
        uncertainty_weight: Weight of Σ_k mean (p_k − p)².
        poly_power: As in `TrainedMethod`; 0 keeps the learning rate.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range.
    """

    reads = frozenset({"target_images"})

    def __init__(
        self,
        confidence_threshold: float = 0.9,
        heads: int = 4,
        dropout: float = 0.5,
        entropy_weight: float = 1.0,
        uncertainty_weight: float = 0.1,
        poly_power: float = 0.0,
        **trained: Any,
    ) -> None:
        super().__init__(poly_power=poly_power, **trained)
        if not 0 <= confidence_threshold <= 1:
            raise UserError(f"model option confidence_threshold: a number from 0 to 1, not {confidence_threshold}")
        if not 0 <= dropout < 1:
            raise UserError(f"model option dropout: a number from 0 up to below 1, not {dropout}")
        if heads < 1:
            raise UserError(f"model option heads: at least 1, not {heads}")
        refuse_negative(entropy_weight=entropy_weight, uncertainty_weight=uncertainty_weight)
        self.confidence_threshold = confidence_threshold
        self.dropout = dropout
        self.entropy_weight = entropy_weight
        self.uncertainty_weight = uncertainty_weight
        self.auxiliary_heads = nn.ModuleList(copy.deepcopy(self.network.head) for _ in range(heads))

    def initialise_from_source(self) -> None:
        """The network from `source_checkpoint`, and every auxiliary head from the network's."""
        super().initialise_from_source()
        for head in self.auxiliary_heads:
            head.load_state_dict(self.network.head.state_dict())

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """Network and auxiliary heads."""
        auxiliary = {"name": "auxiliary_heads", "params": list(self.auxiliary_heads.parameters())}
        return [*super().trainable_parameters(), auxiliary]

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``pseudo_label``, ``entropy`` and ``uncertainty``."""
        images, valid = batch["target"]["image"], batch["target"]["valid"]
        logits, features = self.network(images, HEAD_INPUT)
        logits = at_least_float32(logits)
        probabilities = logits.detach().softmax(dim=1)
        confidence, predicted = top_label(probabilities)
        labels = torch.where(valid & (confidence >= self.confidence_threshold), predicted.long(), IGNORE)
        return {
            "pseudo_label": cross_entropy(logits, labels),
            "entropy": self.entropy_weight * mean_entropy(logits, valid) / math.log(self.network.num_classes),
            "uncertainty": self.uncertainty_weight * self._uncertainty(features, probabilities, valid),
        }

    def _uncertainty(self, features: Tensor, probabilities: Tensor, valid: Tensor) -> Tensor:
        """Σ_k of the mean over valid pixels and classes of (p_k − p)²."""
        size = probabilities.shape[-2:]
        distances = [
            squared_distance(self._auxiliary_logits(head, features, size), probabilities, valid)
            for head in self.auxiliary_heads
        ]
        return torch.stack(distances).sum()

    def _auxiliary_logits(self, head: nn.Module, features: Tensor, size: torch.Size) -> Tensor:
        """What the network would give with another head on features that dropout has thinned: (B, C, *size)."""
        padded = padded_size(size, self.network.multiple)
        logits = head(F.dropout2d(features, self.dropout))
        return self.network.resize(logits, padded)[..., : size[0], : size[1]]


def squared_distance(logits: Tensor, probabilities: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels and classes of (softmax(logits) − p)²; 0 with a gradient where no pixel is valid.

    Args:
        logits: (B, C, H, W); half precision is raised to float32.
        probabilities: p (B, C, H, W).
        valid: (B, H, W) bool.
    """
    squares = (at_least_float32(logits).softmax(dim=1) - probabilities).square().mean(dim=1)
    return torch.where(valid, squares, 0).sum() / valid.sum().clamp(min=1)
