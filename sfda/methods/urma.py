"""Uncertainty reduction: heads that see damaged features have to agree with the head that does not."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfda.data.datasets import Batch
from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.errors import refuse_negative, refuse_outside
from sfda.losses.cross_entropy import cross_entropy
from sfda.losses.entropy import mean_entropy
from sfda.losses.mean import mean_over_pixels
from sfda.methods.kinds.trained import TrainedMethod
from sfda.metrics.functional import at_least_float32, top_label
from sfda.networks.segmenter import HEAD_INPUT
from sfda.ranks import ALL_RANKS, ALONE, Ranks


class URMA(TrainedMethod):
    """Pseudo-labels, entropy, and agreement of auxiliary heads after dropout with the main one.

    Sivaprasad and Fleuret, "Uncertainty Reduction for Model Adaptation in Semantic Segmentation" (CVPR 2021),
    implemented from the published description, with its weights, number of heads and learning rates. Every auxiliary
    head starts as a copy of the network's head and sees its features after a channel dropout of its own. The
    auxiliary heads are saved with the network and take no part in predictions.

    Two things differ from the authors' code. Pseudo-labels are the main head's own confident predictions of the moment;
    theirs are class-balanced and fixed beforehand. Scale and shift of the BN layers train; theirs are frozen.

    Args:
        confidence_threshold: Confidence in [0, 1] from which a prediction is a pseudo-label; the value is ours.
        heads: Number K of auxiliary heads.
        dropout: Probability with which a channel of the features is dropped.
        entropy_weight: Weight of mean H(p) / ln C.
        uncertainty_weight: Weight of Σ_k mean (p_k − p)².
        head_lr: Learning rate of the head and the auxiliary heads as a multiple of `lr`.
        poly_power: As in `TrainedMethod`; 0 keeps the learning rate.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range.
    """

    needs = Needs(target="images", view="weak")
    optimises = ("entropy", "infomax")

    def __init__(
        self,
        confidence_threshold: float = 0.9,
        heads: int = 4,
        dropout: float = 0.5,
        entropy_weight: float = 1.0,
        uncertainty_weight: float = 0.1,
        head_lr: float = 10.0,
        poly_power: float = 0.0,
        **trained: Any,
    ) -> None:
        super().__init__(poly_power=poly_power, **trained)
        refuse_outside(0, 1, confidence_threshold=confidence_threshold)
        refuse_outside(0, 1, "[)", dropout=dropout)
        refuse_outside(1, math.inf, heads=heads)
        refuse_negative(entropy_weight=entropy_weight, uncertainty_weight=uncertainty_weight, head_lr=head_lr)
        self.confidence_threshold = confidence_threshold
        self.dropout = dropout
        self.entropy_weight = entropy_weight
        self.uncertainty_weight = uncertainty_weight
        self.head_lr = head_lr
        self.auxiliary_heads = nn.ModuleList(copy.deepcopy(self.network.head) for _ in range(heads))

    def initialise_from_source(self) -> None:
        """The network from `source_checkpoint`, and every auxiliary head from the network's."""
        super().initialise_from_source()
        for head in self.auxiliary_heads:
            head.load_state_dict(self.network.head.state_dict())

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """Network and auxiliary heads; all heads learn faster."""
        head = list(self.network.head.parameters())
        of_head = {id(parameter) for parameter in head}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in of_head]
        lr = self.head_lr * self.lr
        return [
            {"name": "network", "params": rest},
            {"name": "head", "params": head, "lr": lr},
            {"name": "auxiliary_heads", "params": list(self.auxiliary_heads.parameters()), "lr": lr},
        ]

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``pseudo_label``, ``entropy`` and ``uncertainty``."""
        images, valid = batch["target"]["image"], batch["target"]["valid"]
        logits, features = self.network(images, HEAD_INPUT)
        logits = at_least_float32(logits)
        probabilities = logits.detach().softmax(dim=1)
        confidence, predicted = top_label(probabilities)
        labels = torch.where(valid & (confidence >= self.confidence_threshold), predicted.long(), IGNORE)
        entropy = mean_entropy(logits, valid, ALL_RANKS) / math.log(self.network.num_classes)
        return {
            "pseudo_label": cross_entropy(logits, labels, ALL_RANKS),
            "entropy": self.entropy_weight * entropy,
            "uncertainty": self.uncertainty_weight * self._uncertainty(features, probabilities, valid),
        }

    def _uncertainty(self, features: Tensor, probabilities: Tensor, valid: Tensor) -> Tensor:
        """Σ_k of the mean over valid pixels and classes of (p_k − p)²."""
        size = probabilities.shape[-2:]
        distances = [
            squared_distance(self._auxiliary_logits(head, features, size), probabilities, valid, ALL_RANKS)
            for head in self.auxiliary_heads
        ]
        return torch.stack(distances).sum()

    def _auxiliary_logits(self, head: nn.Module, features: Tensor, size: torch.Size) -> Tensor:
        """What the network would give with another head on features that dropout has thinned: (B, C, *size)."""
        return self.network.apply_head(F.dropout2d(features, self.dropout), size, head)


def squared_distance(logits: Tensor, probabilities: Tensor, valid: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean over valid pixels and classes of (softmax(logits) − p)²; 0 with a gradient where no pixel is valid.

    Args:
        logits: (B, C, H, W); half precision is raised to float32.
        probabilities: p (B, C, H, W).
        valid: (B, H, W) bool.
        ranks: Whose pixels are counted, see `sfda.losses.mean.mean_over_pixels`.
    """
    squares = (at_least_float32(logits).softmax(dim=1) - probabilities).square().mean(dim=1)
    return mean_over_pixels(squares, valid, ranks)
