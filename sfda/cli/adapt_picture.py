"""Pictures of ``sfda adapt``: what the source model sees, and what adapting it has changed."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfda.cli.predict import load_method
from sfda.cli.source import Source
from sfda.data.images import read_image
from sfda.data.label_spaces import CITYSCAPES19, ClassSet, load_class_set
from sfda.data.transforms import resize_image
from sfda.drawing import Array, class_legend, colour
from sfda.files import write_figure
from sfda.methods import Method
from sfda.networks.segmenter import eval_mode
from sfda.runs.run import Run

Size = tuple[int, int]
Predict = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) → probabilities (B, C, H, W)."""


def draw_source(source: Source, images: Sequence[Path], size: Size, path: Path) -> None:
    """Images, what the source model makes of them, and how sure it is."""

    def predict(pixels: Tensor) -> Tensor:
        logits: Tensor = source.segmenter(pixels)
        return logits.float().softmax(dim=1)

    rows = []
    with eval_mode(source.segmenter):
        for image in images:
            pixels, classes, confidence = _predicted(predict, image, size)
            rows.append([pixels, colour(classes, source.classes), _grey(confidence)])
    _draw(["image", "source model", "confidence (white = 1)"], rows, source.classes, path)


def draw_before_after(before: Run, after: Run, images: Sequence[Path], size: Size, path: Path) -> float:
    """Images, what both models make of them, where these differ, and how sure both are.

    Returns:
        The share of pixels, in [0, 1], whose class differs.
    """
    classes = load_class_set(before.data().get("classes") or CITYSCAPES19.name)
    methods = [load_method(run.selected, {**run.model(), "num_classes": len(classes)}) for run in (before, after)]
    predict = [partial(_predict_on_its_device, method) for method in methods]
    rows, shares = [], []
    for image in images:
        pixels, first, sure = _predicted(predict[0], image, size)
        _, second, surer = _predicted(predict[1], image, size)
        shares.append(float((first != second).mean()))
        pictures = [colour(found, classes) for found in (first, second)]
        rows.append([pixels, *pictures, _grey(first != second), _grey(sure), _grey(surer)])
    titles = ["image", "source model", "adapted", f"changed, {100 * float(np.mean(shares)):.1f} %"]
    _draw([*titles, "confidence before", "confidence after"], rows, classes, path)
    return float(np.mean(shares))


def _predict_on_its_device(method: Method, pixels: Tensor) -> Tensor:
    return method.predict_probabilities(pixels.to(method.device))


@torch.inference_mode()
def _predicted(predict: Predict, path: Path, size: Size) -> tuple[Array, Array, Array]:
    """An image (H, W, 3) as the network sees it, its classes (H, W), and the confidence in them."""
    image = resize_image(read_image(path), size)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255
    confidence, classes = (part[0].cpu().numpy() for part in predict(pixels).max(dim=1))
    return image, classes.astype(np.uint8), confidence


def _grey(values: Array) -> Array:
    return np.repeat((255 * values[..., None]).astype(np.uint8), 3, axis=2)


def _draw(titles: Sequence[str], rows: Sequence[Sequence[Array]], classes: ClassSet, path: Path) -> None:
    from matplotlib.figure import Figure

    height, width = rows[0][0].shape[:2]
    lines = len(rows) * height / width
    figure = Figure(figsize=(3.2 * len(titles), 3.2 * lines + 1.2), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, pictures in zip(axes, rows, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    class_legend(figure, classes)
    write_figure(path, figure, dpi=100)
