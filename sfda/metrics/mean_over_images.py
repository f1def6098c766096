"""A score per image, averaged over all images of all processes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import override


class MeanOverImages(MeanMetric):
    """Mean of a score of images; NaN before any image.

    Args:
        name: Name of the score.
        score: Probabilities (B, C, H, W) → the score of each image, (B,).
    """

    def __init__(self, name: str, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self._name = name
        self._score = [score]  # in a list: a method that it is bound to is no part of the metric

    @override
    def update(self, probabilities: Tensor, labels: Tensor | None = None) -> None:  # type: ignore[override]
        super().update(self._score[0](probabilities).double())

    @override
    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {self._name: super().compute()}
