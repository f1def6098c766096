"""The checkpoint whose predictions mix classes least."""

from torch import Tensor
from typing_extensions import override

from sfda.callbacks.extra_scores import SampledScore
from sfda.callbacks.selection import Selector
from sfda.metrics.pixel_sample import class_confusion


class SelectByCorrC(SampledScore, Selector):
    """Smallest Corr-C of 1,024 pixels per image, mean over images; see `class_confusion`."""

    score = "corr_c"
    signals = ("entropy",)

    @override
    def score_pixels(self, rows: Tensor) -> Tensor:
        return class_confusion(rows)
