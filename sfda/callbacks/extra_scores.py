"""Scores of one's own beside those of the project."""

from abc import abstractmethod
from typing import Any, ClassVar

import lightning as L
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.label_spaces import ClassSet
from sfda.metrics.functional import top_label
from sfda.metrics.mean_over_images import MeanOverImages
from sfda.metrics.pixel_sample import pixel_sample
from sfda.metrics.view_agreement import Predict


class ExtraScores(MethodCallback):
    """Adds a metric to every validation set; give a subclass with ``--trainer.callbacks+ PACKAGE.MODULE.CLASS``.

    Its scores are logged as ``<domain>/<name>``, equal on all ranks, stand in ``result.json``, and a
    `sfda.callbacks.selection.Selector` can choose by them. Where `compute` of the metric gives one tensor instead of
    scores by name, the name is that of the class in lower case.

    Example:
        class Kappa(ExtraScores):
            def make_metric(self, classes, with_labels):
                return MulticlassCohenKappa(len(classes), ignore_index=255) if with_labels else None
    """

    @abstractmethod
    def make_metric(self, classes: ClassSet, with_labels: bool) -> Metric | None:
        """The metric of a validation set, as `sfda.metrics.scoring.MakeMetric` says; None: nothing to compute.

        Args:
            classes: The C classes that are scored.
            with_labels: Whether there are labels, and the method may read them.
        """

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        MethodCallback.setup(self, trainer, pl_module, stage)
        self.method.scoring.add(getattr(self, "score", type(self).__name__.lower()), self.make_metric)
        super().setup(trainer, pl_module, stage)  # of a selector, which looks for its score


class SampledScore(ExtraScores):
    """Adds the mean over images of a score of some of their pixels; no label is read.

    Class attributes:
        score: Its name.
    """

    score: ClassVar[str]

    @abstractmethod
    def score_pixels(self, rows: Tensor) -> Tensor:
        """Probabilities of pixels (B, N, C) → the score of each image (B,)."""

    @override
    def make_metric(self, classes: ClassSet, with_labels: bool) -> Metric:
        return MeanOverImages(self.score, lambda probabilities: self.score_pixels(pixel_sample(probabilities)))


class ScoreOfPasses(ExtraScores):
    """Adds the mean over images of a score that takes further passes of the network; no label is read.

    Every image is predicted as a single view, whatever `views` the method has: a mean over scales and mirror images
    agrees with its own mirror image by construction.

    Class attributes:
        score: Its name.
    """

    score: ClassVar[str]

    @abstractmethod
    def score_images(self, predict: Predict, images: Tensor, plain: Tensor) -> Tensor:
        """Images (B, 3, H, W) and the classes (B, H, W) that they are given as they are → the score of each (B,)."""

    @override
    def make_metric(self, classes: ClassSet, with_labels: bool) -> Metric:
        return MeanOverImages(self.score, lambda _: self._score_latest())

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._images: Tensor = batch["image"]

    def _score_latest(self) -> Tensor:
        method, images = self.method, self._images

        def predict(view: Tensor, size: tuple[int, int]) -> Tensor:
            return method.score_probabilities(method.single_view_probabilities(view, size))

        plain = top_label(predict(images, (images.shape[-2], images.shape[-1])))[1]
        return self.score_images(predict, images, plain)
