import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sfda.metrics.ece_estimate import EceEstimateQuality, FirstAndLast, estimate_scatter, pearson, spearman


def scores(metric):
    return {name: float(value) for name, value in metric.compute().items()}


def loop_pearson(one, other):
    mean_one, mean_other = sum(one) / len(one), sum(other) / len(other)
    products = sum((a - mean_one) * (b - mean_other) for a, b in zip(one, other, strict=True))
    squares = sum((a - mean_one) ** 2 for a in one) * sum((b - mean_other) ** 2 for b in other)
    return products / math.sqrt(squares)


def loop_ranks(values):
    """The mean of the places that a value takes in any order of its equals."""
    ordered = sorted(values)
    return [np.mean([place for place, other in enumerate(ordered) if other == value]) for value in values]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=30))
@settings(deadline=None, max_examples=60)
def test_values_against_loops(twelfths):
    """Multiples of 1/12 with many ties; correlations of a constant are NaN, and nothing warns."""
    pairs = np.array(twelfths, dtype=np.float32) / 12
    metric = EceEstimateQuality()
    for batch in np.array_split(pairs, 3):
        if len(batch):
            metric.update(torch.from_numpy(batch[:, 0]), torch.from_numpy(batch[:, 1]))
    got = scores(metric)
    estimates, truths = (column.astype(np.float64).tolist() for column in pairs.T)
    assert got["estimated_ece"] == pytest.approx(np.mean(estimates), abs=1e-12)
    assert got["true_ece"] == pytest.approx(np.mean(truths), abs=1e-12)
    assert got["mae"] == pytest.approx(np.mean([abs(a - b) for a, b in zip(estimates, truths, strict=True)]), abs=1e-12)
    if len(set(estimates)) == 1 or len(set(truths)) == 1:
        assert math.isnan(got["pearson"])
        assert math.isnan(got["spearman"])
    else:
        assert got["pearson"] == pytest.approx(loop_pearson(estimates, truths), abs=1e-9)
        assert got["spearman"] == pytest.approx(loop_pearson(loop_ranks(estimates), loop_ranks(truths)), abs=1e-9)


def test_correlations_against_scipy():
    generator = np.random.default_rng(0)
    one = generator.random(200)
    other = np.round(one**3 + 0.3 * generator.random(200), 1)
    arguments = torch.from_numpy(one), torch.from_numpy(other)
    assert pearson(*arguments).item() == pytest.approx(stats.pearsonr(one, other).statistic, abs=1e-12)
    assert spearman(*arguments).item() == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
    assert spearman(arguments[0], -(arguments[0] ** 5)).item() == -1


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("count", [3, 7, 10, 49])
def test_a_constant_has_no_correlation(constant, count):
    """Its mean is not always itself: the deviations may be rounding errors."""
    values = torch.full((count,), constant, dtype=torch.float64)
    assert pearson(values, torch.rand(count, dtype=torch.float64)).isnan()
    assert spearman(torch.rand(count, dtype=torch.float64), values).isnan()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_have_no_correlation(count):
    metric = EceEstimateQuality()
    metric.update(torch.full((count,), 0.25), torch.full((count,), 0.5))
    got = scores(metric)
    assert math.isnan(got["pearson"])
    assert math.isnan(got["spearman"])
    expected = {"estimated_ece": 0.25, "true_ece": 0.5, "mae": 0.25} if count else {"estimated_ece": math.nan}
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, nan_ok=True)


def test_images_without_a_truth_count_in_the_mean_estimate_alone():
    metric = EceEstimateQuality()
    metric.update(torch.tensor([0.1, 0.9, 0.3]), torch.tensor([0.2, torch.nan, 0.1]))
    got = scores(metric)
    assert got["estimated_ece"] == pytest.approx(1.3 / 3)
    assert got["true_ece"] == pytest.approx(0.15)
    assert got["mae"] == pytest.approx(0.15)
    assert got["pearson"] == pytest.approx(-1)


def test_without_labels_there_is_the_mean_estimate_alone():
    metric = EceEstimateQuality(with_labels=False)
    metric.update(torch.tensor([0.1, 0.3]))
    metric.update(torch.tensor([0.5]), torch.tensor([0.4]))
    assert scores(metric) == {"estimated_ece": pytest.approx(0.3)}
    assert metric.pairs()[1].isnan().all()
    metric.reset()
    assert len(metric.pairs()[0]) == 0


@pytest.mark.parametrize("split", [5, 12])
def test_two_processes_together(split, on_two_ranks):
    """Of uneven shares, and with one process that has no image."""
    generator = torch.Generator().manual_seed(0)
    estimates, truths = torch.rand(2, 12, generator=generator)
    whole = EceEstimateQuality()
    whole.update(estimates, truths)

    def rank(number):
        metric = EceEstimateQuality()
        share = slice(0, split) if number == 0 else slice(split, None)
        for i in range(12)[share]:
            metric.update(estimates[i : i + 1], truths[i : i + 1])
        return {"scores": dict(metric.compute()), "pairs": torch.stack(metric.pairs())}

    one, other = on_two_ranks(rank)
    assert one["scores"] == other["scores"]
    assert {name: float(value) for name, value in one["scores"].items()} == pytest.approx(scores(whole), abs=1e-12)
    for got in (one, other):
        assert torch.equal(got["pairs"], torch.stack([estimates, truths]).double())


def test_the_scatter_has_labels_the_diagonal_and_the_correlations():
    estimates, truths = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.15, torch.nan, 0.4])
    figure = estimate_scatter(estimates, truths, {"pearson": 0.912, "spearman": math.nan, "mae": 0.05})
    (axis,) = figure.axes
    assert len(axis.collections[0].get_offsets()) == 2
    (diagonal,) = axis.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert axis.get_xlim()[1] > 0.4
    assert "estimated ECE" in axis.get_xlabel()
    assert "true ECE" in axis.get_ylabel()
    assert "Pearson 0.91" in axis.get_title()
    assert "2 images" in axis.get_title()
    estimate_scatter(estimates, torch.full((3,), torch.nan), {"pearson": 0.0, "spearman": 0.0, "mae": 0.0})


def test_first_and_last_means_are_those_of_the_known_images_of_two_processes(on_two_ranks):
    def one_rank(rank):
        course = FirstAndLast(steps=2)
        for step in range(5):
            estimates = torch.tensor([0.1 * step, 0.9]) + 0.2 * rank
            course.add(estimates, estimates - 0.05, torch.tensor([True, rank == 1 and step == 0]))
        return course.means()

    one, other = on_two_ranks(one_rank)
    assert one == other
    # first: 0, 0.1 and 0.2, 1.1, 0.3; last: 0.3, 0.4 and 0.5, 0.6
    assert one == pytest.approx((1.7 / 5, 0.45, 0.4))
    assert all(math.isnan(mean) for mean in FirstAndLast().means())
