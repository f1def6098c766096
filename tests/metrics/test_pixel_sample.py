"""Scores of a pixel sample, against loops over pixels and numpy's linear algebra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfda.metrics.mean_over_images import MeanOverImages
from sfda.metrics.pixel_sample import class_confusion, nuclear_norm, pixel_sample, soft_neighbourhood_density


def draw_rows(seed, pixels=7, classes=4, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(1, pixels, classes, generator=generator, dtype=torch.float64)).softmax(2)


def one_hot(*classes, of=4):
    return torch.nn.functional.one_hot(torch.tensor([classes]), of).double()


def snd_by_loops(rows, temperature=0.05):
    unit = [row / np.linalg.norm(row) for row in rows]
    entropies = []
    for i, one in enumerate(unit):
        weights = [math.exp(float(one @ other) / temperature) for j, other in enumerate(unit) if j != i]
        shares = [weight / sum(weights) for weight in weights]
        entropies.append(-sum(share * math.log(share) for share in shares if share > 0))
    return sum(entropies) / len(entropies)


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(2, 6), st.floats(0.0, 30.0))
def test_all_three_are_those_of_loops_and_numpy(seed, pixels, classes, sharpness):
    rows = draw_rows(seed, pixels, classes, sharpness)
    p = rows[0].numpy()
    correlation = sum(np.outer(row, row) for row in p)
    assert float(class_confusion(rows)) == pytest.approx(1 - np.trace(correlation) / correlation.sum(), abs=1e-9)
    largest = math.sqrt(pixels * min(pixels, classes))
    assert float(nuclear_norm(rows)) == pytest.approx(np.linalg.norm(p, "nuc") / largest, abs=1e-9)
    assert float(soft_neighbourhood_density(rows)) == pytest.approx(snd_by_loops(p), abs=1e-9)


def test_certain_predictions_of_all_classes_are_best_and_one_class_has_little_norm():
    balanced, collapsed = one_hot(0, 1, 2, 3, 0, 1, 2, 3), one_hot(*[2] * 8)
    assert float(nuclear_norm(balanced)) == pytest.approx(1)
    assert float(nuclear_norm(collapsed)) == pytest.approx(0.5)
    assert float(class_confusion(balanced)) == float(class_confusion(collapsed)) == 0
    assert float(class_confusion(torch.full((1, 5, 4), 0.25))) == pytest.approx(0.75)
    assert float(soft_neighbourhood_density(collapsed)) == pytest.approx(math.log(7))  # all others are alike


def test_one_pixel_and_no_pixel_are_scored_or_nan():
    one = one_hot(1)
    assert (float(nuclear_norm(one)), float(class_confusion(one))) == (1, 0)
    assert math.isnan(MeanOverImages("snd", soft_neighbourhood_density).compute()["snd"])


def test_the_sample_is_the_same_at_each_call_and_of_pixels_that_there_are():
    probabilities = torch.rand(2, 3, 5, 6).softmax(1)
    rows = pixel_sample(probabilities, 40)
    assert torch.equal(rows, pixel_sample(probabilities, 40))
    there_are = {tuple(row) for row in probabilities[1].flatten(1).T.double().tolist()}
    assert {tuple(row) for row in rows[1].tolist()} <= there_are
    assert len({tuple(row) for row in rows[1].tolist()}) > 15


def test_the_mean_counts_images_and_not_batches():
    metric = MeanOverImages("mean", lambda probabilities: probabilities.mean((1, 2, 3)))
    for values in ([1.0], [2.0, 6.0]):
        metric.update(torch.tensor(values)[:, None, None, None].expand(-1, 2, 3, 4))
    assert metric.compute() == {"mean": pytest.approx(3.0)}
