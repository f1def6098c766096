"""The parameters of a sweep file: what they may be, and how a value is drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sfda.errors import UserError

Options = Mapping[str, Any]
Keys = tuple[set[str], set[str]]
_RANGE: Keys = ({"min", "max"}, set())
_NORMAL: Keys = (set(), {"mu", "sigma"})


def _log_between(draw: random.Random, low: float, high: float) -> float:
    return min(max(math.exp(draw.uniform(math.log(low), math.log(high))), low), high)


def _gauss(draw: random.Random, given: Options) -> float:
    return draw.gauss(given.get("mu", 0.0), given.get("sigma", 1.0))


def _quantised(value: float, given: Options) -> float:
    """The nearest multiple of q; whole where q is, for options that are whole numbers."""
    step = given.get("q", 1)
    return int(round(value / step) * step) if isinstance(step, int) else round(value / step) * step


_KINDS: dict[str, tuple[Keys, Callable[[random.Random, Options], Any]]] = {
    "constant": (({"value"}, set()), lambda draw, given: given["value"]),
    "categorical": (({"values"}, set()), lambda draw, given: draw.choice(given["values"])),
    "categorical_w_probabilities": (
        ({"values", "probabilities"}, set()),
        lambda draw, given: draw.choices(given["values"], given["probabilities"])[0],
    ),
    "int_uniform": (_RANGE, lambda draw, given: draw.randint(given["min"], given["max"])),
    "uniform": (_RANGE, lambda draw, given: draw.uniform(given["min"], given["max"])),
    "log_uniform": (_RANGE, lambda draw, given: math.exp(draw.uniform(given["min"], given["max"]))),
    "log_uniform_values": (_RANGE, lambda draw, given: _log_between(draw, given["min"], given["max"])),
    "q_uniform": (
        ({"min", "max"}, {"q"}),
        lambda draw, given: _quantised(draw.uniform(given["min"], given["max"]), given),
    ),
    "q_log_uniform_values": (
        ({"min", "max"}, {"q"}),
        lambda draw, given: _quantised(_log_between(draw, given["min"], given["max"]), given),
    ),
    "normal": (_NORMAL, _gauss),
    "log_normal": (_NORMAL, lambda draw, given: math.exp(_gauss(draw, given))),
}
"""Of every distribution: keys that it must have, keys that it may have, how it is drawn."""


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

    def draw(self, seed: object) -> Any:
        """A value, of which `seed` and the name decide."""
        return _KINDS[self.distribution][1](random.Random(f"{seed} {self.name}"), self.given)

    @property
    def values(self) -> list[Any] | None:
        """All its values; None where there is no end of them."""
        if self.distribution == "constant":
            return [self.given["value"]]
        if self.distribution == "int_uniform":
            return list(range(self.given["min"], self.given["max"] + 1))
        return list(self.given["values"]) if "values" in self.given else None


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
        raise UserError(f"parameter {name}: distribution {distribution!r} is not one of {', '.join(_KINDS)}")
    given = {key: value for key, value in content.items() if key != "distribution"}
    (needed, optional), _ = _KINDS[distribution]
    if not needed <= set(given) <= needed | optional:
        keys = " and ".join(sorted(needed)) + "".join(f", perhaps {key}" for key in sorted(optional))
        raise UserError(f"parameter {name}: {distribution} takes {keys.removeprefix(', ')}, not {', '.join(given)}")
    _check_numbers(name, distribution, given)
    _check_values(name, given)
    return Parameter(name, distribution, given)


def _default_distribution(content: Options) -> str:
    """As W&B understands an entry without ``distribution``."""
    if "value" in content:
        return "constant"
    if "values" in content:
        return "categorical_w_probabilities" if "probabilities" in content else "categorical"
    whole = all(isinstance(content.get(key), int) for key in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def _check_numbers(name: str, distribution: str, given: Options) -> None:
    for key in {"min", "max", "q", "mu", "sigma"} & set(given):
        if isinstance(given[key], bool) or not isinstance(given[key], int | float):
            hint = " (YAML takes 1e-3 for a text: write 1.0e-3)" if isinstance(given[key], str) else ""
            raise UserError(f"parameter {name}: {key} is a number, not {given[key]!r}{hint}")
    if "min" in given and not given["min"] < given["max"]:
        raise UserError(f"parameter {name}: min {given['min']} is not below max {given['max']}")
    if distribution == "int_uniform" and not all(isinstance(given[key], int) for key in ("min", "max")):
        raise UserError(f"parameter {name}: int_uniform takes whole numbers")
    if "log_uniform_values" in distribution and given["min"] <= 0:
        raise UserError(f"parameter {name}: {distribution} takes min > 0; log_uniform takes exponents")
    if given.get("q", 1) <= 0 or given.get("sigma", 1) < 0:
        raise UserError(f"parameter {name}: q > 0 and sigma >= 0")


def _check_values(name: str, given: Options) -> None:
    values = given.get("values", [given.get("value", 0)])
    if not isinstance(values, list) or not values:
        raise UserError(f"parameter {name}: values is a list, not {values!r}")
    if None in values:
        raise UserError(f"parameter {name}: W&B would pass null on as the text None; leave it out")
    if "probabilities" in given:
        shares = given["probabilities"]
        numbers = isinstance(shares, list) and all(isinstance(share, int | float) and share >= 0 for share in shares)
        if not numbers or len(shares) != len(values) or not math.isclose(sum(shares), 1):
            raise UserError(f"parameter {name}: one probability for each value, together 1")
