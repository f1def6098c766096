"""One interface for every segmentation network: RGB in [0, 1] goes in, logits at input size come out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sfda.errors import UserError, last_line
from sfda.networks.options import OPTION
from sfda.networks.outputs import Forms, Kind, find_form, kept_outputs, named_maps, to_logits
from sfda.networks.untrainable import refuse_untrainable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BACKBONE = "backbone"
"""Layer name of the encoder's last map, f in the papers."""
BACKBONE_16 = "backbone@16"
"""Layer name of the last of the maps that the encoder gives with at most 16 pixels of the image per cell."""
HEAD_INPUT = "head_input"
"""Layer name of the map that the head turns into logits."""


class Segmenter(nn.Module):
    """A network with its preprocessing, its named parts, and logits at input size.

    Images are normalised by buffers of this module, so that preprocessing travels with the weights; they are padded
    (replicated at the right and at the bottom) to a multiple of what the network needs, and the logits cropped back.

    Three parts are named: ``backbone`` is the encoder, ``classifier`` all after it, and ``head`` (within the
    classifier) the last layers, which give the logits. The head is a module of one input; whatever the network does
    after it is taken to be a change of size, after a softmax or sigmoid where it gives probabilities. A network may
    have none: then what needs one raises a `UserError`.

    Args:
        network: Normalised images (B, 3, H, W) → logits (B, C, h, w) of any size, or a nest of sequences and mappings
            that holds them; without `forms`, under ``out``.
        num_classes: C.
        head: Dotted name of the head in `network`; None: no module gives the logits up to a change of size.
        backbone: Dotted name of the encoder in `network`; None: everything but the head is backbone.
        align_corners: How the network's logits are brought to other sizes; belongs to its weights.
        multiple: Height and width that the network takes are multiples of this.
        mean: Mean per channel, of RGB in [0, 1].
        std: Standard deviation per channel.
        channel_order: Order of the channels that the network takes; `mean` and `std` are of R, G, B in any case.
        drop_outputs: Channels of the network's map that stand for no class; the others are the C classes.
        forms: Which of several maps are the logits, and what they hold; see `sfda.networks.probe`.
        head_kind: What the head gives.
        name: What messages call the network.
        description: What was found out about the network, in one line; "" where its name says everything.

    Raises:
        UserError: `drop_outputs` names an output twice, or one that there is not.
    """

    mean: Tensor
    std: Tensor
    _kept: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        head: str | None,
        backbone: str | None = None,
        align_corners: bool = False,
        multiple: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        drop_outputs: Sequence[int] = (),
        forms: Forms | None = None,
        head_kind: Kind = "logits",
        name: str = "network",
        description: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.multiple = multiple
        self.channel_order = channel_order
        self.name = name
        self.description = description
        self._backbone = backbone
        self._head = head
        self._head_kind = head_kind
        self._forms = forms or {}
        self.num_outputs = num_classes + len(drop_outputs)
        kept = torch.tensor(kept_outputs(self.num_outputs, drop_outputs)) if drop_outputs else None
        self.register_buffer("_kept", kept, persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        for layer_name, layer in network.named_modules():
            if isinstance(layer, _BatchNorm):
                layer.register_forward_pre_hook(partial(refuse_untrainable, layer_name))

    def forward(self, images: Tensor, features: str | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, and on request the output of a layer with them, in one pass (the one entry, as DDP asks for).

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            features: None for logits alone; else `BACKBONE`, `BACKBONE_16`, `HEAD_INPUT`, or the dotted name of a
                module of the backbone or of the whole network (``layer3``, ``decoder``).

        Returns:
            Logits (B, C, H, W), or (logits, features (B, D, h, w)); the features are those of the padded images.

        Raises:
            UserError: no such layer, a network that fails on these images or whose output does not have a channel for
                every class, or a BatchNorm layer that cannot normalise by the statistics of this batch.
        """
        size = images.shape[-2:]
        height, width = padded_size(size, self.multiple)
        inputs = (images - self.mean) / self.std
        if self.channel_order == "bgr":
            inputs = inputs.flip(1)
        if self.multiple > 1 and _may_differ((height, width), size):
            inputs = F.pad(inputs, (0, width - size[1], 0, height - size[0]), mode="replicate")
        if features is None:
            return self._at_size(*self._outputs(inputs), size)
        with self._captured(features, width) as maps:
            outputs = self._outputs(inputs)
        if not maps:
            raise UserError(
                f"layer {features!r}: the network's forward pass gives no map (B, D, h, w) there; {self._stages()}"
            )
        return self._at_size(*outputs, size), maps[-1]

    def forward_features(self, images: Tensor, layer: str | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W) and features (B, D, h, w) of a layer, by default the encoder's last map; see `forward`.

        Raises:
            UserError: as `forward`.
        """
        logits, features = self(images, layer or BACKBONE)
        return logits, features

    def feature_channels(self, layer: str | None = None) -> int:
        """D of `forward_features`, found by one small pass that leaves no trace.

        Raises:
            UserError: as `forward`.
        """
        channels: int = self._try((128, 128), layer or BACKBONE)[1].shape[1]
        return channels

    def try_size(self, size: Sequence[int]) -> None:
        """Pass one image of `size` (H, W), which leaves no trace.

        Raises:
            UserError: the network fails on it.
        """
        self._try(size, None)

    def _try(self, size: Sequence[int], features: str | None) -> Any:
        with eval_mode(self), torch.no_grad():
            return self(self.mean.expand(1, -1, *size), features)

    def resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, C, h, w) brought to `size` (H, W), bilinear, with the `align_corners` of this network."""
        if not _may_differ(logits.shape[-2:], size):
            return logits
        return F.interpolate(logits, list(size), mode="bilinear", align_corners=self.align_corners)

    def apply_head(self, head_input: Tensor, size: Sequence[int], head: nn.Module | None = None) -> Tensor:
        """Logits (B, C, H, W) from the features `HEAD_INPUT` of images of `size` (H, W); by another head than its own.

        They are those of `forward` up to a number per pixel, which no softmax sees; after a sigmoid at the images' size
        up to the order of resize and logarithm too.

        Raises:
            UserError: the network has no head.
        """
        return self._at_size((head or self.head)(head_input), self._head_kind, size)

    @property
    def head(self) -> nn.Module:
        """The last layers, which give the logits; one input (B, D, h, w).

        Raises:
            UserError: the network has none.
        """
        if self._head is None:
            raise UserError(
                f"{self.name}: no module gives the logits up to a change of size, and this method needs a head: name "
                f"the last layers, of one input, with {OPTION}.head, or take another method"
            )
        return self.network.get_submodule(self._head)

    def parts(self) -> dict[str, nn.Module]:
        """``backbone``, ``classifier`` and ``head``, to freeze, to train or to set to eval mode.

        Every parameter is in exactly one of backbone and classifier; the head is within the classifier. Without a head
        that part is empty; without a backbone too, everything is backbone.
        """
        head = nn.ModuleList() if self._head is None else self.head
        if self._backbone is None:
            return {"backbone": _all_but(self.network, head), "classifier": head, "head": head}
        backbone = self.network.get_submodule(self._backbone)
        return {"backbone": backbone, "classifier": _all_but(self.network, backbone), "head": head}

    def _outputs(self, inputs: Tensor) -> tuple[Tensor, Kind]:
        """The map (B, outputs, h, w) that stands for the classes, of inputs as the network takes them."""
        try:
            output = self.network(inputs)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what somebody else's network raises
            raise UserError(f"{self.name} fails on images {tuple(inputs.shape)}: {last_line(error)}") from error
        maps = named_maps(output)
        form = find_form(list(maps), self.network.training, self._forms)
        if form is None or form.name not in maps:
            raise UserError(
                f"{self.name} gives {', '.join(maps) or 'no map (B, C, h, w)'}: say which are the logits with "
                f"{OPTION}.output"
            )
        return maps[form.name], form.kind

    def _at_size(self, outputs: Tensor, kind: Kind, size: Sequence[int]) -> Tensor:
        if outputs.shape[1] != self.num_outputs:
            raise UserError(
                f"the network gives {outputs.shape[1]} channels (output {tuple(outputs.shape)}) for "
                f"{self.num_outputs} classes: a factory must build its network with the number that it is given"
            )
        if self._kept is not None:
            outputs = outputs.index_select(1, self._kept)
        return _crop(self.resize(to_logits(outputs, kind), padded_size(size, self.multiple)), size)

    @contextmanager
    def _captured(self, layer: str, width: int) -> Iterator[list[Tensor]]:
        """The maps that `layer` gives (or, for the head's input, takes) inside the block, from images of a width."""
        maps: list[Tensor] = []
        from_input = layer == HEAD_INPUT or (layer in (BACKBONE, BACKBONE_16) and self._backbone is None)

        def keep(_module: nn.Module, inputs: Any, output: Any) -> None:
            found = list(named_maps(inputs if from_input else output).values())
            if layer == BACKBONE_16:
                found = [map_ for map_ in found if 16 * map_.shape[-1] >= width] or found
            maps.extend(found[-1:])

        handle = (self.head if from_input else self._layer(layer)).register_forward_hook(keep)
        try:
            yield maps
        finally:
            handle.remove()

    def _layer(self, name: str) -> nn.Module:
        backbone: nn.Module = self.network.get_submodule(self._backbone or "")
        if name in (BACKBONE, BACKBONE_16):
            return backbone
        layers: dict[str, nn.Module] = dict(self.network.named_modules()) | dict(backbone.named_modules())
        if name not in layers:
            raise UserError(f"layer {name!r}: the network has no module of this name; {self._stages()}")
        return layers[name]

    def _stages(self) -> str:
        from sfda.networks.stages import describe_stages  # which stands on this module

        return f"take {BACKBONE}, {BACKBONE_16} or a stage of its encoder: {describe_stages(self)}"


def padded_size(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Height and width of an image of `size` (H, W) padded, below and on the right, to multiples."""
    # Of no negative number and ending in a product: ONNX rounds towards 0, and `torch.export` sees the multiple.
    height, width = ((length + multiple - 1) // multiple * multiple for length in size)
    return height, width


def _crop(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The upper left part of `size`; copied where `torch.export` would look whether it is the whole."""
    if torch.compiler.is_compiling():
        for axis in (-2, -1):
            logits = logits.index_select(axis, torch.arange(size[axis], device=logits.device))
        return logits
    return logits[..., : size[0], : size[1]]


def _may_differ(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes differ; true while a program for images of all sizes is traced, which cannot branch on them.

    What is done where they do, padding and bilinear resizing, changes no bit where they do not.
    """
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or tuple(size) != tuple(other)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every submodule has its own mode again."""
    flags = [(submodule, submodule.training) for _, submodule in module.named_modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


def _all_but(module: nn.Module, part: nn.Module) -> nn.ModuleList:
    """All of `module` that is not in its submodule `part`: the largest other submodules, and stray parameters."""
    rest = nn.ModuleList()
    if strays := list(module.parameters(recurse=False)):
        rest.append(nn.ParameterList(strays))
    for child in module.children():
        if child is part:
            continue
        rest.extend(_all_but(child, part) if any(other is part for _, other in child.named_modules()) else [child])
    return rest
