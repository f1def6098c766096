"""The paired interval of a difference of mIoU."""

import numpy as np
import pytest
import torch

from sfda.judging.bootstrap import DRAWS, mean_iou, paired_interval
from sfda.metrics.segmentation import iou_per_class


def confusions(seed: int, images: int = 12, classes: int = 4, hits: float = 30.0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    return draws.poisson(3.0, (images, classes, classes)) + draws.poisson(hits, (images, classes))[..., None] * np.eye(
        classes
    )


def test_mean_iou_is_that_of_the_table():
    for each in (confusions(0)[0], np.diag([3.0, 0, 2, 0]), np.array([[2.0, 1, 0], [0, 0, 0], [0, 0, 0]])):
        assert mean_iou(each) == pytest.approx(float(iou_per_class(torch.from_numpy(each)).nanmean()))


def test_the_interval_is_that_of_a_loop_over_the_same_draws():
    source, adapted = confusions(1), confusions(2, hits=34.0)
    found = paired_interval(source, adapted, seed=5)
    weights = np.random.default_rng(5).multinomial(12, [1 / 12] * 12, size=DRAWS)
    differences = []
    for draw in weights:
        drawn = [index for index, count in enumerate(draw) for _ in range(count)]
        differences.append(mean_iou(adapted[drawn].sum(0)) - mean_iou(source[drawn].sum(0)))
    assert found.difference == pytest.approx(mean_iou(adapted.sum(0)) - mean_iou(source.sum(0)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    assert found.low <= found.difference <= found.high


def test_the_same_model_differs_by_nothing_whatever_the_images():
    found = paired_interval(confusions(3), confusions(3))
    assert found == (0, 0, 0)
    assert found.includes_zero


def test_pairs_tell_what_single_scores_do_not():
    """Images differ in how hard they are by far more than the models do."""
    hard = np.linspace(5, 60, 12)[:, None, None] * np.eye(4) + 8
    gained = hard + 1.5 * np.eye(4)
    assert not paired_interval(hard, gained).includes_zero
    assert paired_interval(hard, gained[::-1]).includes_zero
    assert paired_interval(gained, hard).high < 0


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(60):
        source, adapted = confusions(100 + seed, images=20), confusions(500 + seed, images=20)  # of one distribution
        held += paired_interval(source, adapted).includes_zero
    assert held >= 50  # 57 expected; fewer than 50 have a probability below 1e-4
