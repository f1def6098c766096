"""What networks give: a map, or a nest of sequences and mappings of maps; logits, or probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sfda.errors import UserError
from sfda.networks.options import OPTION

Kind = Literal["logits", "probabilities", "sigmoid"]
"""What a map holds; of ``sigmoid``, the logits of one probability per class, which need not sum to 1."""

SMALLEST = 1e-8
"""A probability below is taken for this one."""


class Form(NamedTuple):
    """Which of several maps are the logits, and what they hold."""

    name: str = ""
    kind: Kind = "logits"


Forms = Mapping[tuple[bool, tuple[str, ...]], Form]
"""Training mode and names of all maps that a network gives → the form."""


def named_maps(output: Any, name: str = "") -> dict[str, Tensor]:
    """The maps (B, D, h, w) in what a module gives, by their dotted path: ``out``, ``1``, ``0.logits``.

    A tensor has the path "". What is no map is left out.
    """
    if isinstance(output, Tensor):
        return {name: output} if output.ndim == 4 else {}
    items: Any = ()
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, Sequence) and not isinstance(output, str):
        items = enumerate(output)
    return {
        path: found
        for key, item in items
        for path, found in named_maps(item, f"{name}.{key}" if name else str(key)).items()
    }


def find_form(names: Sequence[str], training: bool, forms: Forms) -> Form | None:
    """The form of an output with maps of these names; None where nobody knows which of them are the logits.

    `forms` is asked for this mode, then for the other. Without an answer it is the only map, or ``out``.
    """
    for mode in (training, not training):
        if (form := forms.get((mode, tuple(names)))) is not None:
            return form
    if len(names) == 1 or "out" in names:
        return Form(names[0] if len(names) == 1 else "out")
    return None


def to_logits(maps: Tensor, kind: Kind) -> Tensor:
    """Logits (B, C, h, w) whose softmax gives the class probabilities that a map of this kind stands for.

    Probabilities and scores in [0, 1] are normalised over C, and their logarithm is taken in at least float32.
    """
    if kind == "logits":
        return maps
    maps = maps.float() if maps.element_size() < 4 else maps
    logarithms = F.logsigmoid(maps) if kind == "sigmoid" else maps.clamp_min(SMALLEST).log()
    return logarithms.log_softmax(dim=1)


def kept_outputs(num_outputs: int, drop_outputs: Sequence[int]) -> list[int]:
    """The outputs that stand for a class, in their order; a `UserError` where `drop_outputs` cannot be."""
    if len(set(drop_outputs)) < len(drop_outputs) or not all(0 <= output < num_outputs for output in drop_outputs):
        raise UserError(
            f"{OPTION}.drop_outputs {list(drop_outputs)}: different numbers from 0 to {num_outputs - 1}, the outputs "
            f"of a network that has them beside {num_outputs - len(drop_outputs)} classes"
        )
    return [output for output in range(num_outputs) if output not in drop_outputs]
