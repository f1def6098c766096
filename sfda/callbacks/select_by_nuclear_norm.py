"""The checkpoint with the largest nuclear norm."""

from torch import Tensor
from typing_extensions import override

from sfda.callbacks.extra_scores import SampledScore
from sfda.callbacks.selection import Selector
from sfda.metrics.pixel_sample import nuclear_norm


class SelectByNuclearNorm(SampledScore, Selector):
    """Largest nuclear norm of the predictions of 1,024 pixels per image, mean over images; see `nuclear_norm`."""

    score = "nuclear_norm"
    mode_of_score = "max"
    signals = ("entropy",)

    @override
    def score_pixels(self, rows: Tensor) -> Tensor:
        return nuclear_norm(rows)
