"""Checkpoints: read safely, and what is in them.

A file of weights never names code. Its `hyper_parameters` are compared with what the user typed or what a run's
``config.yaml`` says; what is imported and called comes from there alone.
"""

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfda.errors import UserError

NAMING = {"network": "--model.init_args.network", "num_classes": "--data.init_args.classes"}
"""Options that a checkpoint is compared with, and where they are said."""


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
    if not zipfile.is_zipfile(path):  # on other bytes the unpickler raises whatever they make it
        raise UserError(f"{path} is not a checkpoint, or was cut off while it was written")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text says how to run what is in the file
        pickled = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {pickled[1]} beside tensors and plain values; save it without" if pickled else "it is damaged"
        raise UserError(f"{path} is not a checkpoint that can be loaded safely: {why}") from error
    except RuntimeError as error:
        raise UserError(f"{path} is not a checkpoint that can be loaded: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is not a checkpoint of an `sfda fit`: it has no state_dict. Weights from elsewhere can be saved "
            "as {'state_dict': {'network.' + key: value, ...}}, with the keys that `build_network` gives the network"
        )
    _refuse_other_than_named(checkpoint["state_dict"], f"state_dict of {path}")
    _refuse_broken_weights(checkpoint["state_dict"], path)
    return checkpoint


def _refuse_broken_weights(state: dict[str, Any], path: str) -> None:
    """No weight is NaN or +∞ (−∞ stands in the masks of attention), no variance negative."""
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


def load_source_network(network: nn.Module, path: str, options: Any) -> None:
    """Load the network of a checkpoint into `network`.

    Raises:
        UserError: the checkpoint cannot be read, or holds another network or another number of classes.
    """
    checkpoint = read_checkpoint(path)
    refuse_another_network(stored_options(checkpoint, path), options, f"source_checkpoint {path}")
    prefix = "network."
    state = {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"source_checkpoint {path} does not fit the network {options['network']}: {error}") from error
