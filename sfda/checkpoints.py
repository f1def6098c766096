"""Checkpoints: read safely, and what is in them.

A file of weights never names code. Its `hyper_parameters` are compared with what the user typed or what a run's
``config.yaml`` says; what is imported and called comes from there alone.
"""

from __future__ import annotations

import importlib
import math
import pickle
import pkgutil
import re
import zipfile
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn

from sfda.cli.messages import shorten, user_error_behind
from sfda.errors import UserError

if TYPE_CHECKING:
    from sfda.methods.base import Method

NAMING = {"network": "--model.init_args.network", "num_classes": "--data.init_args.classes"}
"""Options that a checkpoint is compared with, and where they are said."""
_NEVER_FROM_A_FILE = {*NAMING, "calibrated_model"}


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


# ---------------------------------------------------------------------- a method


def build_method(checkpoint: dict[str, Any], said: Mapping[str, Any], name: str) -> Method:
    """The method of a checkpoint, with its weights.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        said: What the user typed or a run's ``config.yaml`` says: `network`, `num_classes` and, where it is known, the
            class path under ``class`` with the other options. A checkpoint of this class is built from what was said.
            One of another class must be of the project's own, and gives the values of its options, no more.
        name: What messages call the checkpoint.

    Raises:
        UserError: nobody but the checkpoint names its class or its network, or it cannot be built.
    """
    stored = stored_options(checkpoint, name)
    refuse_another_network(stored, said, name)
    class_path = stored.get("_class_path")
    if class_path is None:
        raise UserError(
            f"{name} does not say of which method it is, as weights from elsewhere do not: score it first, with `sfda "
            "validate` of SourceOnly, and use that run"
        )
    try:
        method = _build_as_said(said) if class_path == said.get("class") else _build_own(class_path, stored, said, name)
        method.on_load_checkpoint(checkpoint)
        method.load_state_dict(checkpoint["state_dict"], strict=method.strict_loading)
    except (ArgumentError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        if (reason := user_error_behind(error)) is not None:
            raise reason from error
        raise UserError(
            f"{name} is a checkpoint of {class_path}, which cannot be built from it: {shorten(str(error))}. What `sfda "
            "fit` or `sfda validate` has written can be used"
        ) from error
    return method


def _build_as_said(said: Mapping[str, Any]) -> Method:
    """As the command line builds it: options are checked, and may be classes themselves."""
    method_class = import_method(said["class"])
    options = {option: value for option, value in said.items() if option != "class"}
    method: Method = instantiate_module(method_class, {"_class_path": said["class"], **options})
    return method


def _build_own(class_path: object, stored: Mapping[str, Any], said: Mapping[str, Any], name: str) -> Method:
    """One of the project's own methods, looked up by its name: none of their other options name code."""
    import sfda.methods

    module, _, _ = str(class_path).rpartition(".")
    if module not in {f"sfda.methods.{found.name}" for found in pkgutil.iter_modules(sfda.methods.__path__)}:
        raise UserError(
            f"{name} is a checkpoint of {class_path}, which is none of sfda.methods, and a file of weights names no "
            "code: give as --run the run folder whose config.yaml names this class, or, to calibrate it, say "
            f"--model.init_args.calibrated_model.class {class_path} and its options in the same way"
        )
    options = {key: value for key, value in stored.items() if not key.startswith("_") and key not in _NEVER_FROM_A_FILE}
    return import_method(class_path)(**options, **{option: said[option] for option in NAMING if option in said})


def import_method(class_path: object) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: it cannot be imported, or is no method.
    """
    from sfda.methods.base import Method  # which reads checkpoints itself

    module, _, name = str(class_path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{class_path} cannot be imported ({error}): install the package it is in") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{class_path} is no sfda.methods.base.Method")
    return found


# ---------------------------------------------------------------------- a network


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
