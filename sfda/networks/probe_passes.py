"""The passes of a probe over small random images, and what they say."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfda.errors import UserError, last_line
from sfda.networks.options import OPTION, NetworkOptions
from sfda.networks.outputs import Form, Forms, Kind, named_maps, to_logits
from sfda.networks.probe_sizes import Size, one_stride, sizes_of

Maps = dict[str, Tensor]


class Subject(NamedTuple):
    """A copy of the network, to be looked at, and what is known of it."""

    module: nn.Module
    num_outputs: int
    options: NetworkOptions
    name: str

    def maps(self, size: Size, batch: int = 1) -> Maps:
        """What it gives for random images (B, 3, H, W), always the same ones."""
        return named_maps(self.module(_images(size, batch)))

    def form(self, maps: Maps) -> Form:
        """Which of these maps are the logits, and what they hold.

        Raises:
            UserError: none has the right number of channels, or the option names none.
        """
        candidates = {name: found for name, found in maps.items() if found.shape[1] == self.num_outputs}
        given = self.options.get("output")
        if given is not None and len(maps) > 1:
            if given not in candidates:
                raise UserError(f"{self.name}: {OPTION}.output {given!r}: it gives {_shapes(maps) or 'no map'}")
            name = given
        elif not candidates:
            self._refuse(maps)
        else:
            name = _deepest(self.module, candidates)
        return Form(name, self.options.get("output_kind") or _kind(candidates[name]))

    def _refuse(self, maps: Maps) -> NoReturn:
        dropped = self.options.get("drop_outputs", ())
        if maps:
            channels = max(maps.values(), key=lambda found: (found.shape[-2:].numel(), found.shape[1])).shape[1]
            classes = self.num_outputs - len(dropped)
            refuse_other_outputs(self.name, channels, classes, dropped, _shapes(maps) if len(maps) > 1 else "")
        raise UserError(f"{self.name} gives no map (B, {self.num_outputs}, h, w)")


class Trace(NamedTuple):
    """What the modules of a network gave in one pass."""

    maps: Maps
    heads: dict[str, list[Tensor]]
    """Module of one map as input → its outputs, as many as it was called; in the order in which they ended."""
    encoders: dict[str, bool]
    """Possible backbone → whether it gave a map."""


def copy_of(module: nn.Module, name: str) -> nn.Module:
    """A copy in eval mode; its parameters ask for gradients, and none is all zeros, behind which modules look alike."""
    try:
        copied = copy.deepcopy(module).eval()
    except Exception as error:
        raise UserError(
            f"{name} cannot be copied, as teachers and this look at it ask for: {last_line(error)}"
        ) from error
    generator = torch.Generator().manual_seed(1)
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        if not parameter.detach().any():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 10
    return copied


def _images(size: Size, batch: int) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def find_multiple(subject: Subject, multiples: Iterable[int]) -> tuple[Size, int, tuple[str, ...]]:
    """The smallest of the sizes that were tried with the multiple, the multiple, and notes."""
    given = subject.options.get("multiple")
    second_best: int | None = None
    failure: Exception | None = None
    for multiple in multiples if given is None else [given]:
        sizes = sizes_of(multiple)
        try:
            passes = [subject.maps(size) for size in sizes]
        except Exception as error:  # noqa: BLE001 - somebody else's network may raise anything
            failure = error
            continue
        names = [subject.form(maps).name for maps in passes[:1]] * len(passes)
        shapes = [maps[name].shape[-2:] for maps, name in zip(passes, names, strict=True) if name in maps]
        if len(shapes) == len(sizes) and one_stride(sizes, shapes, multiple):
            return sizes[0], multiple, ()
        second_best = second_best or multiple
    if second_best is not None:
        return sizes_of(second_best)[0], second_best, ("its map is no fixed fraction of the image's size",)
    assert failure is not None
    if given is not None:
        raise UserError(f"{subject.name} fails with {OPTION}.multiple {given}: {last_line(failure)}") from failure
    raise UserError(
        f"{subject.name} takes no image of about 100x100, whatever its size is a multiple of: {last_line(failure)}. If "
        f"it takes one size alone, say it with {OPTION}.multiple, and bring images to it with --data.init_args.size"
    ) from failure


def form_in_training(subject: Subject, size: Size) -> Forms:
    """The form of what it gives in train mode, in which it stays; whatever the network raises."""
    subject.module.train()
    maps = subject.maps(size, batch=2)  # some BatchNorm layers get one value per image
    return {(True, tuple(maps)): subject.form(maps)}


def watch(subject: Subject, size: Size, backbones: Iterable[str]) -> tuple[Trace, Form]:
    """One pass in which every module that may be head or backbone is looked at."""
    images = _images(size, 1)
    heads: dict[str, list[Tensor]] = {}
    encoders: dict[str, bool] = {}

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        if name in backbones:
            encoders[name] = bool(named_maps(output))
        if _may_be_head(inputs, keywords, output, images) and output.shape[1] == subject.num_outputs:
            heads.setdefault(name, []).append(output)

    parameters = sum(1 for _ in subject.module.parameters())
    handles = [
        layer.register_forward_hook(partial(look, name), with_kwargs=True)
        for name, layer in subject.module.named_modules()
        if 0 < sum(1 for _ in layer.parameters()) < parameters
    ]
    maps = named_maps(subject.module(images))
    for handle in handles:
        handle.remove()
    return Trace(maps, heads, encoders), subject.form(maps)


def _may_be_head(inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any, images: Tensor) -> bool:
    maps = [*inputs, output]
    if keywords or len(maps) != 2 or not all(isinstance(found, Tensor) and found.ndim == 4 for found in maps):
        return False
    return not (inputs[0].shape == images.shape and torch.equal(inputs[0], images))


def find_head(subject: Subject, trace: Trace, outputs: Tensor, kind: Kind) -> tuple[str | None, Kind, bool | None]:
    """Name and kind of the head, and `align_corners`, None where the size does not tell."""
    given = subject.options.get("head")
    size = outputs.shape[-2:]
    with torch.no_grad():
        for name, calls in trace.heads.items():
            if len(calls) > 1 or given not in (None, name):
                continue
            for head_kind in _head_kinds(kind):
                for align_corners in (False, True):
                    brought = F.interpolate(calls[0], size, mode="bilinear", align_corners=align_corners)
                    if _same(brought, head_kind, outputs, kind):
                        told = calls[0].shape[-2:] != size
                        return name, head_kind, align_corners if told else None
    return None, "logits", None


def _head_kinds(kind: Kind) -> tuple[Kind, ...]:
    return ("logits",) if kind == "logits" else ("logits", "sigmoid", "probabilities")


def _same(maps: Tensor, maps_kind: Kind, outputs: Tensor, kind: Kind) -> bool:
    """Whether both stand for the same probabilities; logits are compared as they are."""
    if kind == "logits":
        return torch.allclose(maps, outputs, rtol=1e-4, atol=1e-5 * float(outputs.abs().max()))
    return torch.allclose(to_logits(maps, maps_kind).softmax(1), to_logits(outputs, kind).softmax(1), atol=1e-5)


def find_backbone(trace: Trace, backbones: Iterable[str], head: str | None) -> str | None:
    """The first of `backbones` that has given a map and does not hold the head."""
    fitting = (name for name in backbones if trace.encoders.get(name) and not f"{head}.".startswith(f"{name}."))
    return next(fitting, None)


def _deepest(module: nn.Module, candidates: Maps) -> str:
    """The map that depends on the most parameters, then the largest, then the first."""
    if len(candidates) == 1:
        return next(iter(candidates))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def rank(name: str) -> tuple[int, int]:
        found = candidates[name]
        if not found.requires_grad:
            return 0, found.numel()
        weights = torch.rand(
            found.shape, generator=torch.Generator().manual_seed(2)
        )  # a sum of softmax has no gradient
        gradients = torch.autograd.grad((found * weights).sum(), parameters, retain_graph=True, allow_unused=True)
        return sum(gradient is not None for gradient in gradients), found.numel()

    return max(candidates, key=rank)


def _kind(maps: Tensor) -> Kind:
    values = maps.detach()
    return "probabilities" if ((values >= 0) & (values <= 1 + 1e-6)).all() else "logits"


def refuse_other_outputs(name: str, channels: int, classes: int, dropped: Sequence[int], more: str = "") -> None:
    """A `UserError` where a network of so many channels does not give these classes and the dropped outputs.

    Args:
        name: What the message calls the network.
        channels: How many it has.
        classes: C.
        dropped: The outputs that stand for no class.
        more: Added in brackets.
    """
    if channels == classes + len(dropped):
        return
    for_classes = f"{classes} classes" + (f" and {len(dropped)} dropped outputs" if dropped else "")
    begin = f"{name} gives {channels} outputs for {for_classes}{more and f' ({more})'}"
    own = f"give the class set of its {channels} outputs as --data.init_args.classes"
    if (left := channels - classes) <= 0:
        raise UserError(f"{begin}: {own}")
    are = "1 is" if left == 1 else f"{left} are"
    raise UserError(f"{begin}: {are} no class? say which with {OPTION}.drop_outputs '[…]', or {own}")


def _shapes(maps: Maps) -> str:
    return ", ".join(f"{name or 'a map'} {tuple(found.shape)}" for name, found in maps.items())
