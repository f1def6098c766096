"""The checkpoint with the largest soft neighbourhood density."""

from torch import Tensor
from typing_extensions import override

from sfda.callbacks.extra_scores import SampledScore
from sfda.callbacks.selection import Selector
from sfda.metrics.pixel_sample import soft_neighbourhood_density


class SelectBySND(SampledScore, Selector):
    """Largest SND of 1,024 pixels per image, mean over images; see `soft_neighbourhood_density`."""

    score = "snd"
    mode_of_score = "max"
    signals = ("entropy",)

    @override
    def score_pixels(self, rows: Tensor) -> Tensor:
        return soft_neighbourhood_density(rows)
