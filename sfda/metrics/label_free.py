"""Scores that no label has to be read for; selectors of source-free methods look at these alone."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from sfda.metrics.functional import Sums, score_sums

COVERAGE_SHARE = 1e-4
"""A class counts as covered if at least one pixel in 10,000 is predicted as it."""


def label_free_scores(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores of all real pixels, from the sums of `score_sums`; NaN where there is none.

    ``entropy`` of a pixel in nats, mean; ``confidence``, mean of the largest probability; ``infomax`` = H(mean p) −
    mean H(p) in nats, higher is better; ``class_coverage``, share of the classes that are predicted at least once in
    10,000 pixels (a guard: entropy alone is smallest where everything collapses into one class).
    """
    pixels = sums["pixels"]
    entropy = sums["entropy"] / pixels
    mean_probability = sums["probabilities"] / pixels
    covered = (sums["predicted"] / pixels >= COVERAGE_SHARE).double().mean()
    return {
        "entropy": entropy,
        "confidence": sums["confidence"] / pixels,
        "infomax": torch.special.entr(mean_probability).sum() - entropy,
        "class_coverage": torch.where(pixels > 0, covered, torch.nan),
    }


class LabelFreeMetrics(Metric):
    """Label-free scores of everything that it has been fed, on all processes together; C is `num_classes`."""

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self._add_sums(pixels=(), entropy=(), confidence=(), probabilities=(num_classes,), predicted=(num_classes,))

    def update(self, probabilities: Tensor, *, valid: Tensor | None = None) -> None:
        """Add a batch: probabilities (B, C, H, W); valid (B, H, W) bool, False where a pixel is padding."""
        self._accumulate(score_sums(probabilities, valid=valid))

    def compute(self) -> dict[str, Tensor]:
        """Scores by name, see `label_free_scores`."""
        return label_free_scores(self._sums())

    def _add_sums(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _accumulate(self, sums: Sums) -> None:
        for name, total in self._sums().items():
            setattr(self, name, total + sums[name])

    def _sums(self) -> Sums:
        return {name: getattr(self, name) for name in self._defaults}
