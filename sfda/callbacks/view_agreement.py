"""How much a model agrees with itself between views of an image, as a score of every validation."""

from torch import Tensor
from typing_extensions import override

from sfda.callbacks.extra_scores import ScoreOfPasses
from sfda.metrics.view_agreement import Predict, view_agreement


class ViewAgreement(ScoreOfPasses):
    """Adds ``view_agreement``: the share of pixels, in [0, 1], that keep their class in four other views.

    The views of `sfda.metrics.view_agreement.views`. It costs five passes per image.
    """

    score = "view_agreement"

    @override
    def score_images(self, predict: Predict, images: Tensor, plain: Tensor) -> Tensor:
        return view_agreement(predict, images, plain)
