"""Class-balanced pseudo-labels: one pass and histograms, against two passes and sorted lists."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from sfda.pseudo_labels.labelling import label_by_class_balance
from sfda.pseudo_labels.store import PseudoLabelStore
from side_by_side import Row, Where, faster

CLASSES, IMAGES, FRACTION = 19, 4, 0.15
NEEDS_NETWORK, ON_GPU = False, False


def predict(image: torch.Tensor) -> tuple[torch.Tensor, None]:
    """The network's part, left out: the images are probabilities. (Two passes would take it twice.)"""
    return image, None


def sorted_lists(batches: list[dict], folder: Path) -> None:
    """As class-balanced self-training was first published: a list of confidences for each class, which is sorted."""
    lists: list[list[float]] = [[] for _ in range(CLASSES)]
    for batch in batches:
        confidence, predicted = predict(batch["image"])[0].max(1)
        for c in range(CLASSES):
            lists[c].extend(confidence[predicted == c].tolist())
    thresholds = np.full(CLASSES, 0.5, np.float32)
    for c, values in enumerate(lists):
        values.sort(reverse=True)
        if values:
            thresholds[c] = values[round(FRACTION * (len(values) - 1))]
    for batch in batches:
        confidence, predicted = (part.numpy() for part in predict(batch["image"])[0].max(1))
        labels = np.where(confidence >= thresholds[predicted], predicted, 255).astype(np.uint8)
        for name, label in zip(batch["name"], labels, strict=True):
            cv2.imwrite(str(folder / f"{name}.png"), label)


def one_pass(batches: list[dict]) -> None:
    """Ours with all that it does: temporaries, checksums, a report."""
    with tempfile.TemporaryDirectory() as folder:
        store = PseudoLabelStore(Path(folder), {})
        store.open()
        label_by_class_balance(store, batches, predict, CLASSES, FRACTION, 0, images=IMAGES)


def rows(where: Where) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    coarse = 5 * torch.randn(IMAGES, CLASSES, 16, 32, generator=generator)  # regions, as labels have them
    images = torch.nn.functional.interpolate(coarse, (512, 1024), mode="bilinear").softmax(1)
    batches = [{"name": [str(number)], "image": image[None]} for number, image in enumerate(images)]

    def theirs() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sorted_lists(batches, Path(folder))

    name = f"thresholds and labels, one pass, {IMAGES}x{CLASSES}x512x1024"
    yield faster(name, lambda: one_pass(batches), "two passes, sorted lists", theirs, 5, where)
