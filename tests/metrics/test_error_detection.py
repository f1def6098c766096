"""AUROC of confidence against errors, beside a rank test of scipy's."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from sfda.metrics.error_detection import ErrorDetection, uncertainties


def stream(batches=3, sharpness=6.0):
    generator = torch.Generator().manual_seed(1)
    for _ in range(batches):
        p = (sharpness * torch.randn(2, 5, 20, 30, generator=generator)).softmax(1)
        labels = torch.where(torch.rand(2, 20, 30, generator=generator) < p.amax(1), p.argmax(1), 3)
        labels[torch.rand(2, 20, 30, generator=generator) < 0.2] = 255
        yield p, labels


@pytest.mark.parametrize("name", ErrorDetection.names)
def test_against_the_rank_test(name):
    metric, right, wrong = ErrorDetection(), [], []
    for p, labels in stream():
        metric.update(p, labels)
        ordered = np.sort(p.double().numpy(), axis=1)[:, ::-1]
        first, second = ordered[:, 0], ordered[:, 1]
        certainty = {
            "top1": first,
            "ratio": 1 - second / first,
            "difference": first - second,
            "entropy": (ordered * np.log(ordered)).sum(1),
        }[name]
        labelled, is_right = (labels != 255).numpy(), (p.argmax(1) == labels).numpy()
        right.append(certainty[labelled & is_right])
        wrong.append(certainty[labelled & ~is_right])
    right, wrong = np.concatenate(right), np.concatenate(wrong)
    expected = mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))
    assert metric.compute()[f"error_auroc_{name}"].item() == pytest.approx(expected, abs=2e-3)
    assert 0.55 < expected < 0.99


def test_certain_pixels_keep_their_order():
    p = torch.tensor([[1 - 1e-6, 1e-6], [1 - 1e-5, 1e-5]]).view(2, 2, 1, 1)
    metric = ErrorDetection()
    metric.update(p, torch.tensor([0, 1]).view(2, 1, 1))
    assert all(value == 1 for value in metric.compute().values())
    assert all((value > 0).all() for value in uncertainties(p).values())


def test_without_an_error_there_is_nothing_to_find():
    metric = ErrorDetection()
    metric.update(torch.tensor([0.9, 0.1]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))
    assert all(torch.isnan(value) for value in metric.compute().values())
