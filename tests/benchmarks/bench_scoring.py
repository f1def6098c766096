"""All scores of an image against the two that torchmetrics has, and the memory that many images take."""

from collections.abc import Iterator

import torch
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError, MulticlassJaccardIndex

from memory import alone, peak_mb
from sfda.metrics.segmentation import SegmentationMetrics
from side_by_side import Row, Where, faster

CLASSES = 19
NEEDS_NETWORK, ON_GPU = False, True


def batch(images: int, height: int, width: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, CLASSES, height, width, generator=generator)
    labels = torch.randint(0, CLASSES, (images, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.softmax(1).to(device), labels.to(device)


def our_metric() -> SegmentationMetrics:
    return SegmentationMetrics([f"class {number}" for number in range(CLASSES)])


def memory_after(images: int) -> float:
    """Peak memory, in MB, of a fresh process that has scored so many images."""
    torch.set_num_threads(1)
    metric, (p, labels) = our_metric(), batch(1, 128, 256, "cpu")
    for _ in range(images):
        metric.update(p, labels)
    metric.compute()
    return peak_mb()


def rows(where: Where) -> Iterator[Row]:
    p, labels = batch(1, 1024, 2048, where.device)
    options = {"ignore_index": 255, "validate_args": False}
    pair = [MulticlassJaccardIndex(CLASSES, **options), MulticlassCalibrationError(CLASSES, 15, **options)]

    def score(*metrics: Metric) -> None:
        for metric in metrics:
            metric.reset()
            metric.update(p, labels)
            metric.compute()

    ours, theirs = our_metric().to(where.device), [metric.to(where.device) for metric in pair]
    yield faster(
        "all scores, 19x1024x2048",
        lambda: score(ours),
        "torchmetrics: IoU, calibration error",
        lambda: score(*theirs),
        2,
        where,
    )
    if where.device == "cpu":
        few, many = alone(memory_after, 20), alone(memory_after, 500)
        yield Row("memory after scoring 500 images", "after 20", many, few, many / few, 1.02, "cost", "MB")
