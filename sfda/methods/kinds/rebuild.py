"""From a checkpoint to a method, the one way.

A file of weights never names code: a class is imported, and called, because the user, or a run's ``config.yaml``,
names it, or because it is one of the project's own.
"""

import importlib
import pkgutil
from argparse import ArgumentError
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.cli import instantiate_module

import sfda.methods
from sfda.errors import UserError
from sfda.libraries import shorten, user_error_behind
from sfda.methods.kinds.method import Method
from sfda.runs.checkpoints import NAMING, read_checkpoint, refuse_another_network, stored_options
from sfda.runs.run import Run

_NEVER_FROM_A_FILE = {*NAMING, "calibrated_model"}


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
    module, _, _ = str(class_path).rpartition(".")
    if module not in method_modules():
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
    module, _, name = str(class_path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{class_path} cannot be imported ({error}): install the package it is in") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{class_path} is no sfda.methods.Method")
    return found


def rebuild_method(checkpoint: dict[str, Any], said: Mapping[str, Any], name: str) -> Method:
    """The method of a checkpoint, to be calibrated; see `build_method`.

    Raises:
        UserError: the method cannot be built, or its predictions change while it is scored.
    """
    stored = stored_options(checkpoint, name)
    if any(options.get("online") is True for options in (stored, said)):
        raise UserError(
            f"{stored.get('_class_path')} with online: true adapts while it is scored, so there is nothing fixed to "
            "calibrate: calibrate the model that it starts from"
        )
    return build_method(checkpoint, said, name)


def load_fixed_method(run: Run, num_classes: int) -> Method:
    """The method of a run's selected checkpoint, in eval mode, on the CPU.

    Raises:
        UserError: it cannot be built, or has no fixed weights.
    """
    path = str(run.selected)
    method = build_method(read_checkpoint(path), {**run.model(), "num_classes": num_classes}, path)
    name = type(method).__name__
    if type(method).adapt_online is not Method.adapt_online and getattr(method, "online", True):
        raise UserError(
            f"{run.folder}: {name} with online: true changes its weights with every image, so there is no fixed model: "
            "take a run with online: false, or the model that it starts from"
        )
    return method.eval()


def method_modules() -> list[str]:
    """Paths of the modules of `sfda.methods` that hold a method each."""
    modules = pkgutil.iter_modules(sfda.methods.__path__)
    return [f"{sfda.methods.__name__}.{module.name}" for module in modules if not module.ispkg]
