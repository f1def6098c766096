"""How well measures of confidence tell right pixels from wrong ones."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from sfda.data.label_spaces import IGNORE
from sfda.metrics.functional import at_least_float32, top_label

BINS = 4096
"""Bins of an uncertainty, on a logarithmic scale: most pixels are nearly certain, and the order among them counts."""
SMALLEST, LARGEST = -30.0, 3.0
"""Binary logarithms of the uncertainties that the bins reach from and to."""


def uncertainties(probabilities: Tensor) -> dict[str, Tensor]:
    """Of every pixel, from p₁ ≥ p₂ of its two best classes: (B, C, H, W) → name → (B, H, W), 0 where it is certain.

    ``top1`` 1 − p₁, ``ratio`` p₂/p₁, ``difference`` 1 − (p₁ − p₂) (1 minus the importance of IAPC, arXiv 2306.01598,
    by the same names), and ``entropy`` in nats.
    """
    probabilities = at_least_float32(probabilities)
    first, predicted = top_label(probabilities)
    others = probabilities.scatter(1, predicted.unsqueeze(1).long(), 0)
    second = others.amax(1)
    return {
        # The sum of the others keeps the digits that 1 − p₁ loses.
        "top1": others.sum(1),
        "ratio": second / first.clamp_min(torch.finfo(first.dtype).tiny),
        "difference": others.sum(1) + second,
        "entropy": torch.special.entr(probabilities).sum(1),
    }


def auroc(right: Tensor, wrong: Tensor) -> Tensor:
    """Probability that a wrong pixel is more uncertain than a right one, a tie counting half.

    From counts (..., BINS) by bin of uncertainty to (...); NaN without a right or a wrong pixel.
    """
    below = right.cumsum(-1) - right / 2
    return (wrong * below).sum(-1) / (right.sum(-1) * wrong.sum(-1))


class ErrorDetection(Metric):
    """AUROC of `uncertainties` against whether a pixel is right, over all labelled pixels; constant memory.

    `compute` gives ``error_auroc_<name>`` in [0, 1]: 0.5 is chance, 1 a threshold that only errors exceed.
    """

    counts: Tensor
    names = ("top1", "ratio", "difference", "entropy")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(len(self.names), 2, BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch: probabilities (B, C, H, W), labels (B, H, W), 255 = takes part in nothing."""
        labelled = labels != IGNORE
        right = (top_label(probabilities)[1] == labels)[labelled].long()
        found: Mapping[str, Tensor] = uncertainties(probabilities)
        for counts, name in zip(self.counts, self.names, strict=True):
            logarithm = found[name][labelled].clamp_min(2**SMALLEST).log2()
            bins = ((logarithm - SMALLEST) / (LARGEST - SMALLEST) * BINS).long().clamp(0, BINS - 1)
            counts += torch.bincount((1 - right) * BINS + bins, minlength=2 * BINS).view(2, BINS)

    def compute(self) -> dict[str, Tensor]:
        """Scores by name."""
        found = auroc(self.counts[:, 0], self.counts[:, 1])
        return {f"error_auroc_{name}": value for name, value in zip(self.names, found, strict=True)}
