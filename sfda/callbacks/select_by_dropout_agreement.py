"""The checkpoint whose classes change least under dropout of features."""

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from sfda.callbacks.extra_scores import ScoreOfPasses
from sfda.callbacks.selection import Selector
from sfda.metrics.functional import top_label
from sfda.metrics.view_agreement import Predict

DROPPED = 0.5
"""Share of the values before the head that are set to 0."""


class SelectByDropoutAgreement(ScoreOfPasses, Selector):
    """Largest share of pixels that keep their class where half of the values before the network's head are dropped.

    CTE with perturbations of features, in its hard form (arXiv 2503.00450); the same values at each call.

    Raises:
        UserError: (in `setup`) the network has no head.
    """

    score = "dropout_agreement"
    mode_of_score = "max"
    signals = ("views",)
    passes = 2

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._head = self.method.network.head

    @override
    def score_images(self, predict: Predict, images: Tensor, plain: Tensor) -> Tensor:
        hook = self._head.register_forward_pre_hook(_drop)
        try:
            dropped = top_label(predict(images, (images.shape[-2], images.shape[-1])))[1]
        finally:
            hook.remove()
        return (dropped == plain).double().mean(dim=(1, 2))


def _drop(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    features = inputs[0]
    drawn = torch.rand(features.shape[1:], generator=torch.Generator().manual_seed(0)).to(features)
    return (features * (drawn >= DROPPED) / (1 - DROPPED), *inputs[1:])
