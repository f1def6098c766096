"""Pictures of what a model predicts and how far its confidence can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sfda.data.label_spaces import IGNORE, ClassSet
from sfda.files import write_figure
from sfda.methods.base import Method
from sfda.metrics.reliability import reliability_diagram

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[np.uint8]


def colour(labels: npt.NDArray[np.integer[Any]], classes: ClassSet) -> Array:
    """Train ids (H, W) as RGB colours (H, W, 3); ignored pixels are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(classes)] = classes.colours
    return np.asarray(table[labels], dtype=np.uint8)


class Pictures(Callback):
    """After `sfda validate`: ``predictions_<domain>.png`` and, with labels, ``reliability_<domain>.png``.

    Args:
        folder: The run folder.
        images: How many images of each domain are drawn.
    """

    def __init__(self, folder: Path, images: int = 4) -> None:
        self.folder = folder
        self.images = images
        self._rows: dict[str, list[tuple[str, list[Array]]]] = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images of a domain."""
        if trainer.state.fn != "validate" or not trainer.is_global_zero or outputs is None:
            return
        assert isinstance(pl_module, Method)
        domain = list(pl_module.datamodule.validation_sets)[dataloader_idx]
        rows = self._rows.setdefault(domain, [])
        for i in range(min(len(batch["name"]), self.images - len(rows))):
            rows.append((batch["name"][i], _panels(batch, i, outputs[i], pl_module.datamodule.score_classes)))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Method)
        for domain, bins in pl_module.reliability.items():
            write_figure(self.folder / f"reliability_{domain}.png", reliability_diagram(*bins), dpi=110)
        for domain, rows in self._rows.items():
            _draw(rows, pl_module.datamodule.score_classes, self.folder / f"predictions_{domain}.png")
        self._rows = {}


def _panels(batch: Any, index: int, probabilities: Tensor, classes: ClassSet) -> list[Array]:
    """Image, label, prediction and confidence of one image, each (H, W, 3)."""
    image = (batch["image"][index] * 255).round().byte().cpu().numpy().transpose(1, 2, 0)
    confidence, prediction = (part.cpu().numpy() for part in probabilities.max(dim=0))
    labels = batch["label"][index].cpu().numpy() if "label" in batch else np.full(prediction.shape, IGNORE)
    grey = np.repeat((confidence[..., None] * 255).astype(np.uint8), 3, axis=2)
    return [image, colour(labels, classes), colour(prediction, classes), grey]


def _draw(rows: list[tuple[str, list[Array]]], classes: ClassSet, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = rows[0][1][0].shape[:2]
    figure = Figure(figsize=(16, 4 * len(rows) * height / width + 1.2), layout="constrained")
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for line, (name, panels) in zip(axes, rows, strict=True):
        for axis, panel in zip(line, panels, strict=True):
            axis.imshow(panel)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize=7)
    for axis, title in zip(axes[0], ("image", "label", "prediction", "confidence (white = 1)"), strict=True):
        axis.set_title(title)
    handles = [
        Patch(color=(red / 255, green / 255, blue / 255), label=name)
        for name, (red, green, blue) in zip(classes.names, classes.colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=10, frameon=False)
    write_figure(path, figure, dpi=90)
