"""Fused scoring against the metrics that torchmetrics has; ours computes the rest (NLL, Brier, entropy, …) as well."""

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

from report import milliseconds, row
from sfda.metrics.segmentation import SegmentationMetrics

CLASSES = 19


def batch(images, height, width):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, CLASSES, height, width, generator=generator)
    labels = torch.randint(0, CLASSES, (images, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.softmax(1), labels


def ours():
    return [SegmentationMetrics([f"class {c}" for c in range(CLASSES)])]


def confusion_only():
    return [MulticlassConfusionMatrix(CLASSES, ignore_index=255, validate_args=False)]


def confusion_and_one_ece():
    return [*confusion_only(), MulticlassCalibrationError(CLASSES, 15, ignore_index=255, validate_args=False)]


def confusion_two_eces_and_mce():
    options = {"ignore_index": 255, "validate_args": False}
    more = [
        MulticlassCalibrationError(CLASSES, 10, **options),
        MulticlassCalibrationError(CLASSES, 15, "max", **options),
    ]
    return [*confusion_and_one_ece(), *more]


def update_and_compute(metrics, p, labels):
    for metric in metrics:
        metric.reset()
        metric.update(p, labels)
        metric.compute()


@pytest.mark.parametrize("size", [(4, 96, 192), (4, 256, 512), (1, 1024, 2048)])
def test_scoring(size):
    p, labels = batch(*size)
    time = {}
    for make in (ours, confusion_only, confusion_and_one_ece, confusion_two_eces_and_mce):
        metrics = make()
        time[make.__name__] = milliseconds(lambda metrics=metrics: update_and_compute(metrics, p, labels), repeats=3)
    for reference in list(time)[1:]:
        name = f"all scores, {size[0]} x {CLASSES} x {size[1]} x {size[2]}"
        row(name, time["ours"], f"torchmetrics {reference.replace('_', ' ')}", time[reference])
