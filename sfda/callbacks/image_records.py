"""Keeps what every image of the target was scored by, for intervals over images and for reports."""

from typing import Any

import lightning as L
import numpy as np
from torch import Tensor
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.datasets import DomainBatch
from sfda.data.label_spaces import ClassSet
from sfda.metrics.functional import score_sums
from sfda.metrics.segmentation import SegmentationMetrics
from sfda.ranks import gather_over_ranks
from sfda.runs.image_records import NAME, Pictures, Records, draw_pictures
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
        self._rows: list[dict[str, Any]] = []

    @override
    def on_scored(self, domain: str, batch: DomainBatch, probabilities: Tensor) -> None:
        if self.method.trainer.state.fn != "validate" or domain != "target":
            return
        for i, name in enumerate(batch["name"]):
            row = self._numbers(batch, i, probabilities[i])
            row["pictures"] = self._pictures(batch, i, probabilities[i]) if self._is_drawn() else None
            self._rows.append({"name": name, **row})

    def _is_drawn(self) -> bool:
        images = len(self.method.datamodule.validation_sets["target"])
        step = -(-images // DRAWN)
        return len(self._rows) % step == 0

    def _numbers(self, batch: DomainBatch, index: int, probabilities: Tensor) -> dict[str, Any]:
        label = batch["label"][index][None] if "label" in batch else None
        sums = {name: value.cpu().numpy() for name, value in score_sums(probabilities[None], label).items()}
        confusion = sums.get("confusion")
        return {
            "confusion": None if confusion is None else confusion.astype(np.uint32),
            "mass": sums["predicted"].astype(np.uint32),
            "entropy": float(sums["entropy"] / sums["pixels"]),
        }

    def _pictures(self, batch: DomainBatch, index: int, probabilities: Tensor) -> Pictures:
        confidence, prediction = probabilities.max(dim=0)
        panels = {
            "image": (batch["image"][index] * 255).round().byte().permute(1, 2, 0),
            "prediction": prediction.byte(),
            "confidence": (confidence * 255).round().byte(),
        }
        if "label" in batch:
            panels["truth"] = batch["label"][index].byte()
        arrays = {kind: panel.cpu().numpy() for kind, panel in panels.items()}
        return draw_pictures(arrays, self.method.datamodule.score_classes)

    @override
    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn != "validate" or getattr(trainer, "fast_dev_run", False):
            return
        metrics = self.method.scoring.find(SegmentationMetrics).get("target")
        bins = metrics.confidence_bins() if metrics is not None and metrics.with_labels else None
        rows = gather_over_ranks(self._rows)
        self._rows = []
        if trainer.is_global_zero and rows:
            _records(rows, bins, self.method.datamodule.score_classes).write(self.run.folder / NAME)


def _records(rows: list[dict[str, Any]], bins: Tensor | None, classes: ClassSet) -> Records:
    ordered = sorted(rows, key=lambda row: str(row["name"]))
    labelled = all(row["confusion"] is not None for row in ordered)
    return Records(
        classes=dict(zip(classes.names, classes.colours, strict=True)),
        names=[row["name"] for row in ordered],
        confusion=np.stack([row["confusion"] for row in ordered]) if labelled else None,
        mass=np.stack([row["mass"] for row in ordered]),
        entropy=np.array([row["entropy"] for row in ordered]),
        bins=None if bins is None else bins.cpu().numpy(),
        pictures={row["name"]: row["pictures"] for row in ordered if row["pictures"] is not None},
    )
