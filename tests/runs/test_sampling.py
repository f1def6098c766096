"""Every distribution against its definition; every mistake in a sentence."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sfda.errors import UserError
from sfda.runs.sampling import read_parameter

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
    ],
)
def test_continuous_distributions(content, distribution):
    assert fits(draws(content), distribution)


def test_values_are_equally_probable():
    equal = draws({"values": ["a", "b"]})
    assert equal.count("a") == pytest.approx(N / 2, abs=4 * math.sqrt(N / 4))
    assert set(draws({"value": "adamw"}, 3)) == {"adamw"}


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
        ({"min": 1.0, "max": 3.0}, None),
    ],
)
def test_what_a_grid_can_run_through(content, values):
    assert read_parameter("x", content).values == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "say value, values, or min and max"),
        ({"parameters": {"lr": {"value": 1}}}, "write nested parameters with dots"),
        *(
            ({"distribution": name, "min": 1, "max": 2}, "`wandb agent` only; here constant, categorical, uniform, log")
            for name in ("beta", "inv_log_uniform_values", "normal", "q_uniform", "int_uniform", "log_uniform")
        ),
        ({"min": 1, "max": 3}, "distribution 'int_uniform' is drawn by `wandb sweep`"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "'categorical_w_probabilities' is drawn by"),
        ({"values": [1], "min": 2}, "categorical takes values, not values, min"),
        ({"min": 1.0}, "uniform takes max and min, not min"),
        ({}, "uniform takes max and min"),
        ({"distribution": "log_uniform_values", "min": "1e-5", "max": 1.0}, "write 1.0e-3"),
        ({"min": True, "max": 2.0}, "min is a number"),
        ({"min": 2.0, "max": 2.0}, "not below max"),
        ({"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}, "takes min > 0"),
        ({"values": []}, "values is a list"),
        ({"values": "ab"}, "values is a list"),
        ({"values": [1, None]}, "null"),
        ({"value": None}, "null"),
    ],
)
def test_a_mistake_is_a_sentence(content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_parameter("model.init_args.x", content)
    assert "parameter model.init_args.x" in str(caught.value)
