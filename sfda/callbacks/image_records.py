"""Keeps what every image of the target was scored by, for intervals over images and for reports."""

from typing import Any

import lightning as L
from torch import Tensor
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.datasets import DomainBatch
from sfda.metrics.image_rows import ImageRow, image_pictures, image_row, records_of
from sfda.metrics.segmentation import SegmentationMetrics
from sfda.ranks import gather_over_ranks
from sfda.runs.image_records import NAME, Pictures
from sfda.runs.run import Run

DRAWN = 60
"""Images that pictures are kept of at most, evenly spaced over the validation set."""


class ImageRecords(MethodCallback):
    """After `sfda validate`: ``images_target.zip``, see `sfda.runs.image_records`.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._rows: list[ImageRow] = []

    @override
    def on_scored(self, domain: str, batch: DomainBatch, probabilities: Tensor) -> None:
        if self.method.trainer.state.fn != "validate" or domain != "target":
            return
        for i, name in enumerate(batch["name"]):
            label = batch["label"][i] if "label" in batch else None
            pictures = self._pictures(batch, i, probabilities[i], label) if self._is_drawn() else None
            self._rows.append(image_row(name, probabilities[i], label, pictures))

    def _is_drawn(self) -> bool:
        images = len(self.method.datamodule.validation_sets["target"])
        step = -(-images // DRAWN)
        return len(self._rows) % step == 0

    def _pictures(self, batch: DomainBatch, index: int, probabilities: Tensor, label: Tensor | None) -> Pictures:
        pixels = (batch["image"][index] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return image_pictures(pixels, probabilities, label, self.method.datamodule.score_classes)

    @override
    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn != "validate" or getattr(trainer, "fast_dev_run", False):
            return
        metrics = self.method.scoring.find(SegmentationMetrics).get("target")
        bins = metrics.confidence_bins() if metrics is not None and metrics.with_labels else None
        rows = gather_over_ranks(self._rows)
        self._rows = []
        if trainer.is_global_zero and rows:
            records_of(rows, bins, self.method.datamodule.score_classes).write(self.run.folder / NAME)
