"""Statistics of batch normalisation: to read, gather, mix and compare them (AdaBN, Tent, Cal-SFDA).

A layer is named as in `module.named_modules()`. Statistics are a (mean, variance) pair per layer, each (C,) float64;
the variance is the unbiased one, as in torch's running buffers. Layers without running statistics are left out.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from sfda.networks.segmenter import eval_mode
from sfda.ranks import at_once, mean_over_ranks, rank_and_world_size, sum_over_ranks

Statistics = dict[str, tuple[Tensor, Tensor]]


class LayerShift(NamedTuple):
    """How far a layer's target statistics lie from its source statistics, averaged over channels."""

    layer: str
    mean_shift: float
    """Mean of |μ_t − μ_s| / σ_s: in source standard deviations."""
    variance_ratio: float
    """Mean of σ_t² / σ_s²."""


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Name → BN layer, in the order of definition; layers without running statistics are left out."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def read_statistics(module: nn.Module) -> Statistics:
    """Copies of the running statistics of every BN layer."""
    return {
        name: (_float64_copy(layer.running_mean), _float64_copy(layer.running_var))
        for name, layer in batch_norm_layers(module).items()
    }


@torch.no_grad()
def mix_statistics(
    module: nn.Module, source: Statistics, target: Statistics, alpha: float, layers: Collection[str] | None = None
) -> None:
    """Write (1 − α)·source + α·target into the running means and variances of the BN layers.

    Args:
        module: Its buffers are changed in place.
        source: Statistics of every layer in `target`.
        target: Statistics; a layer that is not in it stays as it is.
        alpha: α in [0, 1]; 0 gives the source statistics exactly.
        layers: The layers to change; None: all of `target`.
    """
    modules = batch_norm_layers(module)
    for name in target if layers is None else [name for name in target if name in layers]:
        for buffer, old, new in zip(
            (modules[name].running_mean, modules[name].running_var), source[name], target[name], strict=True
        ):
            assert buffer is not None
            buffer.copy_(torch.lerp(old, new, alpha))


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Give all ranks the mean of their running means and variances; without it a checkpoint holds those of rank 0."""
    buffers = [
        buffer
        for layer in batch_norm_layers(module).values()
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
    if buffers and rank_and_world_size()[1] > 1:
        for buffer, mean in zip(buffers, at_once(mean_over_ranks, buffers), strict=True):
            buffer.copy_(mean)


def layer_shift(source: Statistics, target: Statistics, eps: float = 1e-5) -> list[LayerShift]:
    """One row per layer of `target`: a picture of where the domain gap sits.

    `eps` is added to every variance, as the layers themselves do: a channel that is dead on source has none.
    """
    rows = []
    for name, (mean, variance) in target.items():
        source_mean, source_variance = source[name]
        shift = (mean - source_mean).abs() / (source_variance + eps).sqrt()
        ratio = (variance + eps) / (source_variance + eps)
        rows.append(LayerShift(name, shift.mean().item(), ratio.mean().item()))
    return rows


@torch.no_grad()
def input_layers(network: nn.Module, images: Tensor) -> set[str]:
    """The BN layers nearest the image: those whose input does not depend on another BN layer's output.

    One pass in eval mode in which every BN layer gives NaN, which convolutions, activations and pooling hand on: a
    layer that meets no NaN is nearest the image. Modes and buffers are as before afterwards.

    Args:
        network: Called with `images` alone.
        images: (B, 3, H, W) RGB in [0, 1]; one small image will do.
    """
    reached: set[str] = set()
    behind: set[str] = set()

    def poison(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (behind if inputs[0].isnan().any() else reached).add(name)
        return torch.full_like(output, torch.nan)

    with eval_mode(network), ExitStack() as hooks:
        for name, layer in batch_norm_layers(network).items():
            hooks.enter_context(layer.register_forward_hook(partial(poison, name)))
        network(images)
    return reached - behind


def keep_lone_values(network: nn.Module) -> None:
    """Let BN layers in train mode normalise by their running statistics where a batch has one value per channel.

    One value has no variance, and torch refuses it; branches that pool globally see it in a stream of single images.
    """

    def leave_train_mode(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer.training = layer.training and inputs[0].numel() > inputs[0].shape[1]

    for layer in batch_norm_layers(network).values():
        layer.register_forward_pre_hook(leave_train_mode, prepend=True)  # before the segmenter refuses the batch


class BatchStatistics:
    """Gathers the statistics of every BN layer's input over all forward passes inside its ``with`` blocks.

    Inside, the BN layers normalise by the statistics of each batch (every layer sees inputs that the layers before it
    have already normalised so), their running statistics are left alone, and all other layers are in eval mode.
    Afterwards every mode is as before. Entering again adds to what was gathered.

    Statistics are pooled: those of all batches together, not means over batches. Batches of 8 images or more are
    advised; one image is too few where a layer sees maps of 1x1.

    The sums are plain tensors rather than buffers, which DDP would overwrite with those of rank 0.

    Example:
        with torch.no_grad(), BatchStatistics(network) as gathered:
            for images in loader:
                network(images)
        statistics = gathered.reduce().mean_and_variance()
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._sums: dict[str, Tensor] = {}
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        self._inside.enter_context(eval_mode(self._module))
        for name, layer in batch_norm_layers(self._module).items():
            assert layer.running_mean is not None
            # Rows: count, Σx, Σx².
            if name not in self._sums:
                self._sums[name] = layer.running_mean.new_zeros(3, layer.num_features, dtype=torch.float64)
            self._inside.enter_context(_batch_normalising(layer))
            self._inside.enter_context(layer.register_forward_pre_hook(partial(self._observe, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.close()

    @torch.no_grad()
    def _observe(self, name: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # One float32 pass a batch, float64 across batches: a float64 copy of the largest maps costs gigabytes.
        features = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        dims = [dim for dim in range(features.ndim) if dim != 1]
        variance, mean = (moment.double() for moment in torch.var_mean(features, dim=dims, correction=0))
        count = torch.full_like(mean, features.numel() / features.shape[1])
        self._sums[name] += torch.stack([count, count * mean, count * (variance + mean.square())])

    def reduce(self) -> Self:
        """Sum over ranks, in place; to be called by all ranks, once, after the last forward pass."""
        if self._sums:
            self._sums = dict(zip(self._sums, at_once(sum_over_ranks, self._sums.values()), strict=True))
        return self

    def mean_and_variance(self) -> Statistics:
        """Pooled mean and unbiased variance, n/(n−1) as in torch's running buffers, of every layer that was reached."""
        statistics: Statistics = {}
        for name, (count, total, squares) in self._sums.items():
            if count[0] > 1:
                mean = total / count
                variance = (squares / count - mean.square()).clamp(min=0) * count / (count - 1)
                statistics[name] = (mean, variance)
        return statistics


@contextmanager
def _batch_normalising(layer: _BatchNorm) -> Iterator[None]:
    # Without `track_running_stats` a layer in train mode neither reads nor writes its running buffers, the count of
    # batches included; momentum 0 would still count, and would take over a NaN.
    tracked = layer.track_running_stats
    layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        layer.track_running_stats = tracked


def _float64_copy(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer.detach().to(torch.float64, copy=True)
