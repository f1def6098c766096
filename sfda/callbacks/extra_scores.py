"""Scores of one's own beside those of the project."""

from abc import abstractmethod

import lightning as L
from torchmetrics import Metric
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.label_spaces import ClassSet


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
        super().setup(trainer, pl_module, stage)
        self.method.scoring.add(type(self).__name__.lower(), self.make_metric)
