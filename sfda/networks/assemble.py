"""From a bare network, and what a user has said of it, to a `Segmenter`."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from sfda.errors import UserError
from sfda.networks.options import OPTION, NetworkOptions
from sfda.networks.outputs import kept_outputs
from sfda.networks.probe import BACKBONES, probe, refuse_unknown_modules
from sfda.networks.probe_sizes import MULTIPLES
from sfda.networks.segmenter import Segmenter


def probed_segmenter(
    network: str,
    module: nn.Module,
    num_classes: int,
    options: NetworkOptions,
    backbones: Iterable[str] = BACKBONES,
    multiples: Iterable[int] = MULTIPLES,
    notes: Iterable[str] = (),
) -> Segmenter:
    """A segmenter of any module, after a `probe`; its `description` says what was found.

    Args:
        network: Its string, for messages.
        module: See `probe`; it has `num_classes` outputs and the dropped ones.
        num_classes: C.
        options: What is known; it goes before what is found.
        backbones: See `probe`.
        multiples: See `probe`.
        notes: What else a user should know.

    Raises:
        UserError: as `probe`, and for options that contradict themselves.
    """
    name = f"network {network!r}"
    dropped = _checked(name, options, num_classes).get("drop_outputs", [])
    found = probe(module, num_classes + len(dropped), options, name=name, backbones=backbones, multiples=multiples)
    return Segmenter(
        module,
        num_classes,
        head=found.head,
        head_kind=found.head_kind,
        backbone=found.backbone,
        align_corners=found.align_corners,
        multiple=found.multiple,
        forms=found.forms,
        name=name,
        description="; ".join([f"network {network}: {found.describe(dropped)}", *notes]),
        **_preprocessing(options),
    )


def segmenter_as_said(
    network: str, module: nn.Module, num_classes: int, known: Mapping[str, Any], options: NetworkOptions
) -> Segmenter:
    """A segmenter of a module that gives one map of logits, of which everything is known.

    Args:
        network: Its string, for messages.
        module: It has `num_classes` outputs and the dropped ones.
        num_classes: C.
        known: Arguments of the `Segmenter`.
        options: What a user says instead.

    Raises:
        UserError: the options name modules that there are not, or contradict themselves.
    """
    name = f"network {network!r}"
    if useless := {"output", "output_kind"} & options.keys():
        raise UserError(f"{name} gives one map of logits: leave out {OPTION}.{min(useless)}")
    refuse_unknown_modules(module, _checked(name, options, num_classes), name)
    said = _picked(options, "backbone", "head", "align_corners", "multiple")
    return Segmenter(module, num_classes, name=name, **{**known, **_preprocessing(options), **said})


def _preprocessing(options: NetworkOptions) -> dict[str, Any]:
    return _picked(options, "mean", "std", "channel_order", "drop_outputs")


def _picked(options: NetworkOptions, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}


def _checked(name: str, options: NetworkOptions, num_classes: int) -> NetworkOptions:
    """The options, if each can be by itself; a `UserError` otherwise."""
    for option in ("mean", "std"):
        values = options.get(option, [1.0, 1.0, 1.0])
        if len(values) != 3 or (option == "std" and min(values) <= 0):  # type: ignore[arg-type, call-overload]
            above = " above 0" if option == "std" else ""
            raise UserError(f"{name}: {OPTION}.{option}: three numbers{above}, of R, G and B, not {values}")
    if options.get("multiple", 1) < 1:
        raise UserError(f"{name}: {OPTION}.multiple: at least 1, not {options['multiple']}")
    dropped = options.get("drop_outputs", [])
    kept_outputs(num_classes + len(dropped), dropped)
    return options
