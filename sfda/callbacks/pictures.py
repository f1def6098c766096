"""Pictures of what a model predicts and how far its confidence can be trusted."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.datasets import DomainBatch
from sfda.data.label_spaces import IGNORE, ClassSet
from sfda.drawing import Array, class_legend, colour
from sfda.files import write_figure
from sfda.metrics.reliability import reliability_diagram
from sfda.metrics.segmentation import SegmentationMetrics

PANELS = ("image", "label", "prediction", "confidence")


class Pictures(MethodCallback):
    """After `sfda validate`: ``predictions_<domain>.png`` and, with labels, ``reliability_<domain>.png``.

    Of each domain `images` are drawn.
    """

    def __init__(self, folder: Path, images: int = 4) -> None:
        self.folder = folder
        self.images = images
        self._rows: dict[str, list[tuple[str, list[Array]]]] = {}

    @override
    def on_scored(self, domain: str, batch: DomainBatch, probabilities: Tensor) -> None:
        trainer = self.method.trainer
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        rows = self._rows.setdefault(domain, [])
        for i in range(min(len(batch["name"]), self.images - len(rows))):
            rows.append((batch["name"][i], _panels(batch, i, probabilities[i], self.method.datamodule.score_classes)))

    @override
    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn != "validate":
            return
        metrics = self.method.scoring.find(SegmentationMetrics).items()
        reliability = {domain: of_domain.reliability() for domain, of_domain in metrics if of_domain.with_labels}
        if not trainer.is_global_zero:
            return
        for domain, bins in reliability.items():
            write_figure(self.folder / f"reliability_{domain}.png", reliability_diagram(*bins), dpi=110)
        for domain, rows in self._rows.items():
            _draw(rows, self.method.datamodule.score_classes, self.folder / f"predictions_{domain}.png")
        self._rows = {}


def _panels(batch: DomainBatch, index: int, probabilities: Tensor, classes: ClassSet) -> list[Array]:
    """Image, label, prediction and confidence of one image, each (H, W, 3)."""
    image = (batch["image"][index] * 255).round().byte().cpu().numpy().transpose(1, 2, 0)
    confidence, prediction = (part.cpu().numpy() for part in probabilities.max(dim=0))
    labels = batch["label"][index].cpu().numpy() if "label" in batch else np.full(prediction.shape, IGNORE)
    grey = np.repeat((confidence[..., None] * 255).astype(np.uint8), 3, axis=2)
    return [image, colour(labels, classes), colour(prediction, classes), grey]


def _draw(rows: list[tuple[str, list[Array]]], classes: ClassSet, path: Path) -> None:
    from matplotlib.figure import Figure

    height, width = rows[0][1][0].shape[:2]
    figure = Figure(figsize=(16, 4 * len(rows) * height / width + 1.2), layout="constrained")
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for line, (name, panels) in zip(axes, rows, strict=True):
        for axis, panel in zip(line, panels, strict=True):
            axis.imshow(panel)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=7)
    for axis, title in zip(axes[0], (*PANELS[:3], "confidence (white = 1)"), strict=True):
        axis.set_title(title)
    class_legend(figure, classes)
    write_figure(path, figure, dpi=90)
