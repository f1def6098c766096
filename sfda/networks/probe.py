"""What a network is, found out by passes over small random images instead of by guesses from its source.

Everything happens on a copy: modes, buffers, gradients and the global random numbers stay as they are.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sfda.errors import UserError, did_you_mean, last_line
from sfda.networks.options import OPTION, NetworkOptions
from sfda.networks.outputs import Form, Forms, Kind
from sfda.networks.probe_passes import (
    Subject,
    copy_of,
    find_backbone,
    find_head,
    find_multiple,
    form_in_training,
    watch,
)
from sfda.networks.probe_sizes import MULTIPLES

BACKBONES = ("backbone", "encoder")
"""Children that are taken for the encoder."""

NORMALISATION = {
    "BatchNorm": _BatchNorm,
    "LayerNorm": nn.LayerNorm,
    "GroupNorm": nn.GroupNorm,
    "InstanceNorm": _InstanceNorm,
}


@dataclass(frozen=True)
class Findings:
    """What `probe` has found of a network: what a `Segmenter` has to be told."""

    num_outputs: int
    forms: Forms
    """Training mode and names of all maps that the network gives → which are the logits, and what they hold."""
    multiple: int
    head: str | None
    head_kind: Kind
    align_corners: bool
    backbone: str | None
    normalisation: Mapping[str, int]
    """Kind of normalisation layer → how many there are."""
    notes: tuple[str, ...] = ()
    """What a user had better know."""

    def describe(self, drop_outputs: Sequence[int] = ()) -> str:
        """One line for a user."""
        outputs = f"{self.num_outputs} outputs"
        if drop_outputs:
            outputs += f" ({', '.join(map(str, drop_outputs))} {'is' if len(drop_outputs) == 1 else 'are'} dropped)"
        corners = f"align_corners {str(self.align_corners).lower()}"
        facts = [
            outputs,
            *_describe_forms(self.forms),
            f"head {self.head}, {corners}" if self.head else "no module gives the logits up to a change of size",
            f"backbone {self.backbone}" if self.backbone else "no backbone named" if not self.head else "",
            f"sizes are padded to multiples of {self.multiple}" if self.multiple > 1 else "any size",
            ", ".join(f"{count} {kind} layers" for kind, count in self.normalisation.items())
            or "no normalisation layers",
            *self.notes,
        ]
        return "; ".join(fact for fact in facts if fact)


def probe(
    module: nn.Module,
    num_outputs: int,
    options: NetworkOptions | None = None,
    *,
    name: str = "the network",
    backbones: Iterable[str] = BACKBONES,
    multiples: Iterable[int] = MULTIPLES,
) -> Findings:
    """Find out what a network gives by about five passes over images of 100x100; `module` is left as it is.

    - The multiple: the first of `multiples` of which all odd multiples pass as sizes, and give maps of 1/s of their
      size, rounded up, with one stride s.
    - The logits: the map of `num_outputs` channels; of several, the one that depends on the most parameters, then the
      largest, then the first. Some networks give more, or other things, in train mode, which is looked at too.
    - Probabilities, where all values lie in [0, 1]; logits otherwise.
    - The head: the first module to end, of one input (B, D, h, w), whose output equals the logits once it is brought
      to their size; this says `align_corners` too, where the size changes.
    - The backbone: the first of `backbones` that gives a map.

    Args:
        module: Takes images (B, 3, H, W).
        num_outputs: Classes, and outputs that stand for none.
        options: What a user has said goes before what is found, and is checked.
        name: What messages call it.
        backbones: Dotted names.
        multiples: In this order.

    Raises:
        UserError: the network takes none of these sizes, or has another number of outputs, or an option does not fit.
    """
    options = options or {}
    refuse_unknown_modules(module, options, name)
    subject = Subject(copy_of(module, name), num_outputs, options, name)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        size, multiple, notes = find_multiple(subject, multiples)
        trace, form = watch(subject, size, [*backbones, *filter(None, [options.get("backbone")])])
        forms = {(False, tuple(trace.maps)): form}
        try:
            forms |= form_in_training(subject, size)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - somebody else's network may raise anything
            notes = (*notes, f"its pass in train mode fails ({last_line(error)})")
    head, kind, align_corners = find_head(subject, trace, trace.maps[form.name], form.kind)
    if "head" in options and head is None:
        head = options["head"]
        notes = (*notes, "its output is not the logits up to a change of size")
    if align_corners is None:
        align_corners = bool(getattr(module, "align_corners", False))
    return Findings(
        num_outputs=num_outputs,
        forms=forms,
        multiple=multiple,
        head=head,
        head_kind=kind,
        align_corners=options.get("align_corners", align_corners),
        backbone=options.get("backbone") or find_backbone(trace, backbones, head),
        normalisation=count_normalisation(module),
        notes=notes,
    )


def count_normalisation(module: nn.Module) -> dict[str, int]:
    """How many normalisation layers of each kind there are; other libraries' own kinds go by their names."""
    kinds: Counter[str] = Counter()
    for _, layer in module.named_modules():
        named = [kind for kind in (*NORMALISATION, "RMSNorm") if kind in type(layer).__name__]
        found = [kind for kind, classes in NORMALISATION.items() if isinstance(layer, classes)] or named
        kinds.update(found[-1:])
    return dict(kinds)


def refuse_unknown_modules(module: nn.Module, options: NetworkOptions, name: str) -> None:
    """A `UserError` where the options name a head or a backbone that the network does not have."""
    known = [path for path, _ in module.named_modules() if path]
    for option, given in (("head", options.get("head")), ("backbone", options.get("backbone"))):
        if given is not None and given not in known:
            hint = did_you_mean(given, known) or f"; its parts are {', '.join(n for n, _ in module.named_children())}"
            raise UserError(f"{name}: {OPTION}.{option} {given!r}: there is no module of this name{hint}")


def _describe_forms(forms: Forms) -> list[str]:
    """The form in eval mode, and the one in train mode where it is another."""
    said = {mode: _describe_form(form) for (mode, _), form in forms.items()}
    return [said[False]] if said.get(True, said[False]) == said[False] else [said[False], f"{said[True]} in train mode"]


def _describe_form(form: Form) -> str:
    kind = "probabilities" if form.kind == "probabilities" else "logits"
    return f"{kind} under {form.name!r}" if form.name else kind
