"""What a few labelled images say: a paired interval of the difference of two models' mIoU. Needs no torch."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DRAWS = 2000
LEVEL = 0.95

Confusions = npt.NDArray[np.float64]
"""One confusion matrix per image, rows = labels: (N, C, C)."""


class Interval(NamedTuple):
    """A difference of mIoU, as a fraction, and the interval that holds it in 95 % of the draws."""

    difference: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the labels cannot tell the two models apart."""
        return self.low <= 0 <= self.high


def mean_iou(confusions: Confusions) -> npt.NDArray[np.float64]:
    """Mean IoU over the classes that occur in labels or predictions: (..., C, C) → (...)."""
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    union = confusions.sum(-1) + confusions.sum(-2) - hits
    occurs = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=occurs)
    return np.asarray(iou.sum(-1) / np.maximum(occurs.sum(-1), 1))


def paired_interval(source: Confusions, adapted: Confusions, seed: int = 0) -> Interval:
    """How much higher the mIoU of the adapted model is, with the percentile interval of a bootstrap over images.

    Each draw takes N images with replacement, the same ones for both models, since images differ far more in how hard
    they are than models do (Efron and Tibshirani, An Introduction to the Bootstrap, section 13).

    Args:
        source: Of the source model, (N, C, C).
        adapted: Of the adapted model on the same images, (N, C, C).
        seed: Of the draws.
    """
    count = len(source)
    weights = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=DRAWS)
    drawn = [mean_iou(np.einsum("dn,nij->dij", weights, each, optimize=True)) for each in (adapted, source)]
    low, high = np.quantile(drawn[0] - drawn[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    difference = mean_iou(adapted.sum(0)) - mean_iou(source.sum(0))
    return Interval(float(difference), float(low), float(high))
