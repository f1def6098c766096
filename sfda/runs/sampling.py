"""The parameters of a sweep file: what they may be, and how a value is drawn."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfda.errors import UserError

Options = Mapping[str, Any]
_KINDS = ("constant", "categorical", "uniform", "log_uniform_values")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep.

    Attributes:
        name: The option of the command line that it sets, without hyphens.
        distribution: One of W&B's distributions.
        given: What the file says of it.
    """

    name: str
    distribution: str
    given: Options

    @property
    def values(self) -> list[Any] | None:
        """All its values; None where there is no end of them."""
        if self.distribution == "constant":
            return [self.given["value"]]
        return list(self.given["values"]) if self.distribution == "categorical" else None

    def draw(self, seed: object) -> Any:
        """A value, which `seed` and the name decide."""
        generator = random.Random(f"{seed} {self.name}")
        if self.values is not None:
            return generator.choice(self.values)
        low, high = self.given["min"], self.given["max"]
        if self.distribution == "uniform":
            return generator.uniform(low, high)
        return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)


def read_parameter(name: str, content: Any) -> Parameter:
    """One entry under ``parameters``.

    Raises:
        UserError: it is not as W&B describes it, or of a distribution that is drawn by W&B only.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"parameter {name}: say value, values, or min and max")
    if "parameters" in content:
        raise UserError(f"parameter {name}: write nested parameters with dots: {name}.…")
    distribution = content.get("distribution", _default_distribution(content))
    if distribution not in _KINDS:
        raise UserError(
            f"parameter {name}: distribution {distribution!r} is drawn by `wandb sweep` and `wandb agent` only; here "
            f"{', '.join(_KINDS)} are"
        )
    given = {key: value for key, value in content.items() if key != "distribution"}
    needed = {"constant": {"value"}, "categorical": {"values"}}.get(distribution, {"min", "max"})
    if set(given) != needed:
        raise UserError(
            f"parameter {name}: {distribution} takes {' and '.join(sorted(needed))}, not {', '.join(given)}"
        )
    if "min" in needed:
        _check_range(name, distribution, given)
    else:
        _check_values(name, given)
    return Parameter(name, distribution, given)


def _default_distribution(content: Options) -> str:
    """As W&B understands an entry without ``distribution``."""
    if "value" in content:
        return "constant"
    if "values" in content:
        return "categorical_w_probabilities" if "probabilities" in content else "categorical"
    return "int_uniform" if all(isinstance(content.get(key), int) for key in ("min", "max")) else "uniform"


def _check_range(name: str, distribution: str, given: Options) -> None:
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = " (YAML takes 1e-3 for a text: write 1.0e-3)" if isinstance(value, str) else ""
            raise UserError(f"parameter {name}: {key} is a number, not {value!r}{hint}")
    if not given["min"] < given["max"]:
        raise UserError(f"parameter {name}: min {given['min']} is not below max {given['max']}")
    if distribution == "log_uniform_values" and given["min"] <= 0:
        raise UserError(f"parameter {name}: log_uniform_values takes min > 0")


def _check_values(name: str, given: Options) -> None:
    values = given.get("values", [given.get("value", 0)])
    if not isinstance(values, list) or not values:
        raise UserError(f"parameter {name}: values is a list, not {values!r}")
    if None in values:
        raise UserError(f"parameter {name}: W&B would pass null on as the text None; leave it out")
