"""Every distribution against its definition; every mistake in a sentence."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sfda.errors import UserError
from sfda.sweep.sampling import read_parameter

N = 1500


def draws(content, number=N):
    parameter = read_parameter("model.init_args.x", content)
    return [parameter.draw(f"0 {i}") for i in range(number)]


def fits(values, distribution):
    return stats.kstest(values, distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("content", "distribution"),
    [
        ({"min": 0.5, "max": 2.0}, stats.uniform(0.5, 1.5)),
        ({"distribution": "uniform", "min": 1, "max": 3}, stats.uniform(1, 2)),
        ({"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}, stats.loguniform(1e-5, 1e-1)),
        ({"distribution": "log_uniform", "min": -3.0, "max": 1.0}, stats.loguniform(math.exp(-3), math.exp(1))),
        ({"distribution": "normal", "mu": 2.0, "sigma": 0.5}, stats.norm(2, 0.5)),
        ({"distribution": "normal"}, stats.norm(0, 1)),
        ({"distribution": "log_normal", "mu": 1.0, "sigma": 0.3}, stats.lognorm(0.3, scale=math.e)),
    ],
)
def test_continuous_distributions(content, distribution):
    assert fits(draws(content), distribution)


@pytest.mark.parametrize("content", [{"min": 2, "max": 5}, {"distribution": "int_uniform", "min": 2, "max": 5}])
def test_whole_numbers_include_both_ends(content):
    values = draws(content)
    assert set(values) == {2, 3, 4, 5}
    assert all(isinstance(value, int) for value in values)


def test_values_and_their_probabilities():
    equal = draws({"values": ["a", "b"]})
    assert equal.count("a") == pytest.approx(N / 2, abs=4 * math.sqrt(N / 4))
    unequal = draws({"values": ["a", "b"], "probabilities": [0.9, 0.1]})
    assert unequal.count("a") == pytest.approx(0.9 * N, abs=4 * math.sqrt(0.09 * N))
    assert set(draws({"value": "adamw"}, 3)) == {"adamw"}


def test_quantised_values_are_multiples():
    fine = draws({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25})
    assert set(fine) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert fine.count(0.5) == pytest.approx(N / 4, abs=5 * math.sqrt(N * 3 / 16))  # the ends have half as many
    whole = draws({"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 10})
    assert all(isinstance(value, int) and value % 10 == 0 for value in whole)
    assert statistics.median(whole) == 10


@given(st.floats(1e-12, 1e3), st.floats(1.0000001, 1e6))
def test_log_uniform_values_never_leave_the_range(low, factor):
    values = draws({"distribution": "log_uniform_values", "min": low, "max": low * factor}, 20)
    assert all(low <= value <= low * factor for value in values)


def test_a_parameter_does_not_depend_on_the_others():
    one, other = (read_parameter(name, {"min": 0.0, "max": 1.0}) for name in ("lr", "momentum"))
    assert one.draw("0 0") == read_parameter("lr", {"min": 0.0, "max": 1.0}).draw("0 0")
    assert len({one.draw("0 0"), other.draw("0 0"), one.draw("0 1"), one.draw("1 0")}) == 4


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ({"value": 3}, [3]),
        ({"values": [1, 2]}, [1, 2]),
        ({"min": 1, "max": 3}, [1, 2, 3]),
        ({"min": 1.0, "max": 3.0}, None),
        ({"distribution": "normal"}, None),
    ],
)
def test_what_a_grid_can_run_through(content, values):
    assert read_parameter("x", content).values == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "say value, values, or min and max"),
        ({"parameters": {"lr": {"value": 1}}}, "write nested parameters with dots"),
        ({"distribution": "beta"}, "distribution 'beta' is not one of constant"),
        ({"distribution": "inv_log_uniform_values", "min": 1, "max": 2}, "is not one of"),
        ({"values": [1], "min": 2}, "categorical takes values, not values, min"),
        ({"min": 1.0}, "uniform takes max and min, not min"),
        ({}, "uniform takes max and min"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "k": 2}, "perhaps q"),
        ({"distribution": "log_uniform_values", "min": "1e-5", "max": 1.0}, "write 1.0e-3"),
        ({"min": True, "max": 2}, "min is a number"),
        ({"min": 2.0, "max": 2.0}, "not below max"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "whole numbers"),
        ({"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}, "takes min > 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "q > 0"),
        ({"distribution": "normal", "sigma": -1}, "sigma >= 0"),
        ({"values": []}, "values is a list"),
        ({"values": "ab"}, "values is a list"),
        ({"values": [1, None]}, "null"),
        ({"value": None}, "null"),
        ({"values": [1, 2], "probabilities": [0.5, 0.4]}, "together 1"),
        ({"values": [1, 2], "probabilities": [1.0]}, "one probability for each"),
    ],
)
def test_a_mistake_is_a_sentence(content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_parameter("model.init_args.x", content)
    assert "parameter model.init_args.x" in str(caught.value)
