"""How much a model agrees with itself between views of an image, as a score of every validation."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import override

from sfda.callbacks.extra_scores import ExtraScores
from sfda.data.label_spaces import ClassSet
from sfda.methods import Method
from sfda.metrics.functional import top_label
from sfda.metrics.view_agreement import view_agreement


class ViewAgreement(ExtraScores):
    """Adds ``view_agreement``: the share of pixels, in [0, 1], that keep their class in four other views.

    The views of `sfda.metrics.view_agreement.views`, each predicted as a single one, whatever `views` the method has:
    a mean over scales and mirror images agrees with its own mirror image by construction. It costs five passes per
    image.
    """

    @override
    def make_metric(self, classes: ClassSet, with_labels: bool) -> MeanMetric:
        return AgreementOfViews(self.method, self._latest_images)

    def _latest_images(self) -> Tensor:
        return self._images

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._images: Tensor = batch["image"]


class AgreementOfViews(MeanMetric):
    """Mean over images; takes the images that were predicted last.

    Args:
        method: What predicts.
        latest_images: Gives the images (B, 3, H, W) that the probabilities belong to.
    """

    def __init__(self, method: Method, latest_images: Callable[[], Tensor]) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self._method = [method]  # in a list: the method is no part of its own metric
        self._latest_images = latest_images

    @override
    def update(self, probabilities: Tensor, labels: Tensor | None = None) -> None:  # type: ignore[override]
        method, images = self._method[0], self._latest_images()

        def predict(view: Tensor, size: tuple[int, int]) -> Tensor:
            return method.score_probabilities(method.single_view_probabilities(view, size))

        plain = top_label(predict(images, (images.shape[-2], images.shape[-1])))[1]
        super().update(view_agreement(predict, images, plain))

    @override
    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {"view_agreement": super().compute()}
