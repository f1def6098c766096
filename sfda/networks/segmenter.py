"""One interface for every segmentation network: RGB in [0, 1] goes in, logits at input size come out."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sfda.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BACKBONE = "backbone"
"""Layer name of the encoder's last map, f in the papers."""
HEAD_INPUT = "head_input"
"""Layer name of the map that the head turns into logits."""


class Segmenter(nn.Module):
    """A network with its preprocessing, its named parts, and logits at input size.

    Images are normalised by buffers of this module, so that preprocessing travels with the weights; they are padded
    (replicated at the right and at the bottom) to a multiple of what the network needs, and the logits cropped back.

    Three parts are named: ``backbone`` is the encoder, ``classifier`` all after it, and ``head`` (within the
    classifier) the last convolutions, which give the logits. The head is a module of one input; whatever the network
    does after it is taken to be a change of size.

    Args:
        network: Normalised images (B, 3, H, W) → logits (B, C, h, w) of any size, or a mapping that holds them
            under ``out``, as torchvision's segmentation networks give them.
        num_classes: C.
        head: Dotted name of the head in `network`.
        backbone: Dotted name of the encoder in `network`; None: everything but the head is backbone.
        align_corners: How the network's logits are brought to other sizes; belongs to its weights.
        multiple: Height and width that the network takes are multiples of this.
        mean: Mean per channel, of RGB in [0, 1].
        std: Standard deviation per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        head: str,
        backbone: str | None = None,
        align_corners: bool = False,
        multiple: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.multiple = multiple
        self._backbone = backbone
        self._head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        for name, layer in network.named_modules():
            if isinstance(layer, _BatchNorm):
                layer.register_forward_pre_hook(partial(_refuse_untrainable, name))

    def forward(self, images: Tensor, features: str | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, and on request the output of a layer with them, in one pass (the one entry, as DDP asks for).

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            features: None for logits alone; else `BACKBONE`, `HEAD_INPUT`, or the dotted name of a module of the
                backbone or of the whole network (``layer3``, ``decoder``).

        Returns:
            Logits (B, C, H, W), or (logits, features (B, D, h, w)); the features are those of the padded images.

        Raises:
            UserError: no such layer, a network whose output does not have `num_classes` channels, or a BatchNorm layer
                that cannot normalise by the statistics of this batch.
        """
        size = images.shape[-2:]
        height, width = padded_size(size, self.multiple)
        inputs = (images - self.mean) / self.std
        if self.multiple > 1 and _may_differ((height, width), size):
            inputs = F.pad(inputs, (0, width - size[1], 0, height - size[0]), mode="replicate")
        if features is None:
            return self._at_size(self.network(inputs), size)
        with self._captured(features) as maps:
            output = self.network(inputs)
        if not maps:
            raise UserError(f"layer {features!r}: the network's forward pass gives no map (B, D, h, w) there")
        return self._at_size(output, size), maps[-1]

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
        with eval_mode(self), torch.no_grad():
            return self.forward_features(self.mean.expand(1, -1, 128, 128), layer)[1].shape[1]

    def resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, C, h, w) brought to `size` (H, W), bilinear, with the `align_corners` of this network."""
        if not _may_differ(logits.shape[-2:], size):
            return logits
        return F.interpolate(logits, list(size), mode="bilinear", align_corners=self.align_corners)

    def apply_head(self, head_input: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, C, H, W) from the features `HEAD_INPUT` of images of `size` (H, W)."""
        return self._at_size(self.head(head_input), size)

    @property
    def head(self) -> nn.Module:
        """The last convolutions, which give the logits; one input (B, D, h, w)."""
        return self.network.get_submodule(self._head)

    def parts(self) -> dict[str, nn.Module]:
        """``backbone``, ``classifier`` and ``head``, to freeze, to train or to set to eval mode.

        Every parameter is in exactly one of backbone and classifier; the head is within the classifier.
        """
        if self._backbone is None:
            return {"backbone": _all_but(self.network, self.head), "classifier": self.head, "head": self.head}
        backbone = self.network.get_submodule(self._backbone)
        return {"backbone": backbone, "classifier": _all_but(self.network, backbone), "head": self.head}

    def _at_size(self, output: Any, size: Sequence[int]) -> Tensor:
        logits: Tensor = output["out"] if isinstance(output, Mapping) else output
        if logits.shape[1] != self.num_classes:
            raise UserError(
                f"the network gives {logits.shape[1]} channels (output {tuple(logits.shape)}) for {self.num_classes} "
                "classes: a factory must build its network with the `num_classes` that it is given"
            )
        return _crop(self.resize(logits, padded_size(size, self.multiple)), size)

    @contextmanager
    def _captured(self, layer: str) -> Iterator[list[Tensor]]:
        """The maps that `layer` gives (or, for the head's input, takes) inside the block."""
        maps: list[Tensor] = []
        from_input = layer == HEAD_INPUT or (layer == BACKBONE and self._backbone is None)

        def keep(_module: nn.Module, inputs: Any, output: Any) -> None:
            maps.extend(_feature_maps(inputs if from_input else output)[-1:])

        handle = (self.head if from_input else self._layer(layer)).register_forward_hook(keep)
        try:
            yield maps
        finally:
            handle.remove()

    def _layer(self, name: str) -> nn.Module:
        backbone: nn.Module = self.network.get_submodule(self._backbone or "")
        if name == BACKBONE:
            return backbone
        layers: dict[str, nn.Module] = dict(self.network.named_modules()) | dict(backbone.named_modules())
        if name not in layers:
            close = difflib.get_close_matches(name, layers) or [child for child, _ in backbone.named_children()]
            raise UserError(f"layer {name!r}: the network has no module of this name; close: {', '.join(close)}")
        return layers[name]


def _refuse_untrainable(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """What a BatchNorm layer in train mode cannot do, by the layer's name; torch says it without."""
    assert isinstance(layer, _BatchNorm)
    if not layer.training and layer.running_mean is not None:
        return
    if layer.eps <= 0:
        raise UserError(
            f"BatchNorm layer {name!r} has eps {layer.eps}, so a channel without variance is divided by 0: build "
            "the network with eps 1e-5, which changes no weight"
        )
    if inputs[0].numel() <= inputs[0].shape[1]:
        raise UserError(
            f"BatchNorm layer {name!r} gets one value per channel, which has no variance: it follows a global pooling, "
            "and the batch has one image. Give a larger --data.init_args.batch_size, or a network without such a branch"
        )


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
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


def _feature_maps(output: Any) -> list[Tensor]:
    """The (B, D, h, w) tensors in what a module gives: a tensor, or a nest of sequences and mappings of them."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 4 else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return [found for item in output for found in _feature_maps(item)] if isinstance(output, list | tuple) else []


def _all_but(module: nn.Module, part: nn.Module) -> nn.ModuleList:
    """All of `module` that is not in its submodule `part`: the largest other submodules, and stray parameters."""
    rest = nn.ModuleList()
    if strays := list(module.parameters(recurse=False)):
        rest.append(nn.ParameterList(strays))
    for child in module.children():
        if child is part:
            continue
        rest.extend(_all_but(child, part) if any(other is part for other in child.modules()) else [child])
    return rest
