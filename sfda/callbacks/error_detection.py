"""Scores of how well the confidence of a model finds its errors."""

from torchmetrics import Metric
from typing_extensions import override

from sfda.callbacks.extra_scores import ExtraScores
from sfda.data.label_spaces import ClassSet
from sfda.metrics.error_detection import ErrorDetection as ErrorDetectionMetric


class ErrorDetection(ExtraScores):
    """Adds ``<domain>/error_auroc_<measure>`` where there are labels, see `sfda.metrics.error_detection`."""

    @override
    def make_metric(self, classes: ClassSet, with_labels: bool) -> Metric | None:
        return ErrorDetectionMetric() if with_labels else None
