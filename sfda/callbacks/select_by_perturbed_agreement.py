"""The checkpoint whose classes change least under small changes of the images."""

from torch import Tensor
from typing_extensions import override

from sfda.callbacks.extra_scores import ScoreOfPasses
from sfda.callbacks.selection import Selector
from sfda.judging.perturbations import perturbed_agreement
from sfda.metrics.view_agreement import Predict


class SelectByPerturbedAgreement(ScoreOfPasses, Selector):
    """Largest share of pixels that keep their class under noise, brighter, darker and softened.

    CTE with perturbations of the input, in its hard form (arXiv 2503.00450).
    """

    score = "perturbed_agreement"
    mode_of_score = "max"
    signals = ("views",)
    passes = 5

    @override
    def score_images(self, predict: Predict, images: Tensor, plain: Tensor) -> Tensor:
        return perturbed_agreement(predict, images, plain)
