"""What a Trainer takes from a checkpoint beside the weights: looked at before it is handed over."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from sfda.errors import UserError


def _is_mapping_of_mappings(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())


def _is_list_of_mappings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


PARTS: dict[str, Callable[[Any], bool]] = {
    "pytorch-lightning_version": lambda value: isinstance(value, str) and re.match(r"\d+\.\d+", value) is not None,
    "epoch": lambda value: type(value) is int and value >= 0,
    "global_step": lambda value: type(value) is int and value >= 0,
    "callbacks": _is_mapping_of_mappings,
    "loops": lambda value: _is_mapping_of_mappings(value) and "fit_loop" in value,
    "optimizer_states": _is_list_of_mappings,
    "lr_schedulers": _is_list_of_mappings,
}
"""Parts of a checkpoint of Lightning, and what each has to be."""


def refuse_broken_parts(checkpoint: Mapping[str, Any], name: str, *, resumes: bool) -> None:
    """Look at the parts that a Trainer restores.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        name: What messages call it.
        resumes: Whether a fit goes on from it, which takes all of them.

    Raises:
        UserError: a part is not what it should be, or is missing.
    """
    for part, is_fine in PARTS.items():
        if part in checkpoint and not is_fine(checkpoint[part]):
            raise UserError(f"{name} is damaged: its {part} is not what `sfda` writes; take another checkpoint")
    if not resumes:
        return
    missing = [part for part in PARTS if part not in checkpoint]
    if not missing and checkpoint["global_step"] and not checkpoint["optimizer_states"]:
        missing = ["optimizer_states"]
    if missing:
        raise UserError(
            f"{name} holds no {', '.join(missing)}, so that no fit can go on from it: give the last.ckpt of a run, or "
            "start from its weights with --model.init_args.source_checkpoint"
        )
