"""Checkpoints: read safely, and what is in them."""

from __future__ import annotations

import importlib
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfda.errors import UserError

if TYPE_CHECKING:
    from sfda.methods.base import Method


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint, loaded to the CPU with ``weights_only=True``.

    Raises:
        UserError: no such file, not a checkpoint that can be loaded safely, or one whose weights are no numbers.
    """
    if not Path(path).is_file():
        place = re.fullmatch(r"runs/([^/]+)/([^/]+)/seed(\d+)/\w+\.ckpt", path)
        how = f"`sfda fit {place[1]}/{place[2]} --seed_everything {place[3]}` writes it" if place else "train it first"
        raise UserError(f"checkpoint {path} does not exist: {how}, or give the path of the one you have")
    if not zipfile.is_zipfile(path):  # on other bytes the unpickler raises whatever they make it
        raise UserError(f"{path} is not a checkpoint, or was cut off while it was written")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint that can be loaded safely: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is not a checkpoint of an `sfda fit`: it has no state_dict. Weights from elsewhere can be saved "
            "as {'state_dict': {'network.' + key: value, ...}}, with the keys that `build_network` gives the network"
        )
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


def import_method(class_path: object, path: str) -> type[Method]:
    """The class of the method that a checkpoint is of.

    Args:
        class_path: What the checkpoint names.
        path: The checkpoint, for messages.

    Raises:
        UserError: it cannot be imported, or is no `Method`.
    """
    from sfda.methods.base import Method  # which reads checkpoints itself

    if class_path is None:
        raise UserError(
            f"{path} does not say of which method it is, as weights from elsewhere do not: score it first, with `sfda "
            "validate` of SourceOnly, and calibrate that run"
        )
    module, _, name = str(class_path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is a checkpoint of {class_path}, which cannot be imported ({error}): install the package it is in"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{path} is a checkpoint of {class_path}, which is no sfda.methods.base.Method")
    return found


def load_source_network(network: nn.Module, path: str, options: Any) -> None:
    """Load the network of a checkpoint into `network`.

    Raises:
        UserError: the checkpoint cannot be read, or holds another network or another number of classes.
    """
    checkpoint = read_checkpoint(path)
    stored = checkpoint.get("hyper_parameters", {})
    for option in ("network", "num_classes"):
        if option in stored and stored[option] != options[option]:
            raise UserError(
                f"source_checkpoint {path} was trained with {option} {stored[option]}, this run has {options[option]}: "
                "make them the same"
            )
    prefix = "network."
    state = {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"source_checkpoint {path} does not fit the network {options['network']}: {error}") from error
