"""Checkpoints: read safely, and what is in them.

A file of weights never names code. Its `hyper_parameters` are compared with what the user typed or what a run's
``config.yaml`` says; what is imported and called comes from there alone.
"""

import io
import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfda.archives import UNLOADABLE, is_archive, refuse_damaged_archive
from sfda.errors import UserError, last_line
from sfda.files import write_whole

NAMING = {"network": "--model.init_args.network", "num_classes": "--data.init_args.classes"}
"""Options that a checkpoint is compared with, and where they are said."""
SHOWN = 3
"""Names that a message lists at most."""


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; see `sfda.files.write_whole`."""
    file = io.BytesIO()  # so that its size is known before it is written
    torch.save(content, file)
    write_whole(path, file.getbuffer())


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint, loaded to the CPU with ``weights_only=True``.

    Raises:
        UserError: no such file, not a checkpoint that can be loaded safely, or one whose weights are no numbers.
    """
    if Path(path).is_dir():
        selected = Path(path, "selected.ckpt")
        how = f"give {selected}" if selected.is_file() else "give the file of a checkpoint; it holds no selected.ckpt"
        raise UserError(f"checkpoint {path} is a folder: {how}")
    if not Path(path).is_file():
        place = re.fullmatch(r"runs/([^/]+)/([^/]+)/seed(\d+)/\w+\.ckpt", path)
        how = f"`sfda fit {place[1]}/{place[2]} --seed_everything {place[3]}` writes it" if place else "train it first"
        raise UserError(f"checkpoint {path} does not exist: {how}, or give the path of the one you have")
    if not is_archive(Path(path)):  # on other bytes the unpickler raises whatever they make it
        raise UserError(
            f"{path} is not a checkpoint of `sfda`, or was cut off while it was written; weights from elsewhere "
            f"become one with `sfda weights import {path} --network NAME --out source.ckpt`"
        )
    refuse_damaged_archive(Path(path))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text says how to run what is in the file
        pickled = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely: "
            + (
                f"it holds {pickled[1]} beside tensors and plain values. Its weights alone become a checkpoint with "
                f"`sfda weights import {path} --network NAME --out source.ckpt`"
                if pickled
                else "it is damaged"
            )
        ) from error
    except UNLOADABLE as error:
        raise UserError(f"{path} is not a checkpoint that can be loaded: {last_line(error)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is not a checkpoint of `sfda`: it has no state_dict. Weights from elsewhere become one with "
            f"`sfda weights import {path} --network NAME --out source.ckpt`"
        )
    _refuse_other_than_named(checkpoint["state_dict"], f"state_dict of {path}")
    refuse_broken_weights(checkpoint["state_dict"], path)
    return checkpoint


def refuse_broken_weights(state: Mapping[str, Any], path: str) -> None:
    """No weight is NaN or +∞ (−∞ stands in the masks of attention), no variance negative.

    Raises:
        UserError: one is.
    """
    for name, value in state.items():
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            continue
        if not (value < math.inf).all() or (name.endswith("running_var") and (value < 0).any()):
            raise UserError(
                f"{path} cannot be used: {name} holds NaN, infinity or a negative variance. The training that wrote it "
                "has diverged: check the source checkpoint, or take an earlier one"
            )


def stored_options(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `hyper_parameters` of a checkpoint, to be compared; weights from elsewhere have none.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        name: What messages call it.

    Raises:
        UserError: they are no options by name.
    """
    stored = checkpoint.get("hyper_parameters", {})
    _refuse_other_than_named(stored, f"hyper_parameters of {name}")
    return stored  # type: ignore[no-any-return]


def _refuse_other_than_named(content: object, name: str) -> None:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"the {name} must be values by name, not a {type(content).__name__}: `sfda` did not write it")


def refuse_another_network(stored: Mapping[str, Any], said: Mapping[str, Any], name: str) -> None:
    """Compare the network and the number of classes of a checkpoint with what was said.

    Raises:
        UserError: they differ.
    """
    for option, where in NAMING.items():
        wanted = said.get(option)
        if option in stored and (type(stored[option]) is not type(wanted) or stored[option] != wanted):
            raise UserError(
                f"{name} was trained with {option} {stored[option]}, this run has {wanted}: make them the same "
                f"({where}, or the config.yaml of its run folder, has to name it; a file of weights cannot)"
            )
    facts = [options.get("network_options") or {} for options in (stored, said)]
    if "network_options" in stored and facts[0] != facts[1]:
        raise UserError(
            f"{name} was trained with network_options {facts[0] or 'null'}, this run has {facts[1] or 'null'}: give "
            f"--model.init_args.network_options '{json.dumps(facts[0]) if facts[0] else 'null'}'"
        )


def load_source_network(network: nn.Module, path: str, options: Any) -> float:
    """Load the network of a checkpoint into `network`.

    Returns:
        The factor on the size of images at which the checkpoint's own method shows them to the network.

    Raises:
        UserError: the checkpoint cannot be read, or holds another network or another number of classes.
    """
    checkpoint = read_checkpoint(path)
    refuse_another_network(stored_options(checkpoint, path), options, f"source_checkpoint {path}")
    prefix = "network."
    state = {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    wanted = network.state_dict()
    if misfit := _misfit(wanted, state):
        raise UserError(
            f"source_checkpoint {path} does not fit --model.init_args.network {options['network']}: {misfit}. Name the "
            "network that it was trained with; weights of another project are brought in by `sfda weights import`"
        )
    network.load_state_dict(state)
    scale = checkpoint.get("input_scale")
    return scale if isinstance(scale, float) else 1.0


def _misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What of one set of tensors the other has not, in words; "" where all have their places."""
    shapes = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    faults = (
        ("weights are missing", [key for key in wanted if key not in found]),
        ("have no place", [key for key in found if key not in wanted]),
        ("have another shape", shapes),
    )
    return ", ".join(f"{len(keys)} {what} ({', '.join(keys[:SHOWN])})" for what, keys in faults if keys)


def source_checkpoint(network: nn.Module, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint that every method can start from.

    Args:
        network: A `Segmenter`, with its weights and its preprocessing.
        facts: ``network``, ``num_classes`` and ``network_options``, as a method is told them.
    """
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    return {"state_dict": state, "hyper_parameters": dict(facts)}
