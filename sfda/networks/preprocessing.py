"""Which preprocessing a network was trained with: the usual conventions, ranked on a few images without a label."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sfda.networks.batch_norm import batch_norm_layers
from sfda.networks.segmenter import IMAGENET_MEAN, IMAGENET_STD, Segmenter, eval_mode

ChannelOrder = Literal["rgb", "bgr"]
Triple = tuple[float, float, float]
CLEARLY = 1.25
"""How many times farther from the statistics in the weights a convention lies than the nearest one, at least, where the
statistics speak against it."""
MORE_INFORMATION = 0.25
"""How many nats of InfoMax a convention has more than what was declared, at least, where the statistics allow both and
it is a clear winner."""


class Convention(NamedTuple):
    """How images become the input of a network: channels in an order, minus a mean, divided by a deviation.

    `mean` and `std` are those of R, G, B in [0, 1].
    """

    name: str
    channel_order: ChannelOrder
    mean: Triple
    std: Triple


class Ranked(NamedTuple):
    """A convention and how well it fits.

    Attributes:
        convention: The convention.
        divergence: How far the inputs of the BatchNorm layers lie from the statistics in the weights; 0 without such
            layers.
        infomax: Of the predictions, in nats.
    """

    convention: Convention
    divergence: float
    infomax: float


_PLAIN: Mapping[str, tuple[Triple, Triple]] = {
    "ImageNet's mean and deviation": (IMAGENET_MEAN, IMAGENET_STD),
    "mean and deviation 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "[0, 1] as it is": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "[0, 255] as it is": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "[0, 255] minus ImageNet's mean": (IMAGENET_MEAN, (1 / 255, 1 / 255, 1 / 255)),
}
ORDERS: tuple[ChannelOrder, ...] = ("rgb", "bgr")
CONVENTIONS = tuple(
    Convention(f"{order.upper()}, {name}", order, mean, std) for name, (mean, std) in _PLAIN.items() for order in ORDERS
)


def declared(segmenter: Segmenter) -> Convention:
    """The convention that a network has now."""
    mean, std = (tuple(buffer.flatten().tolist()) for buffer in (segmenter.mean, segmenter.std))
    order = segmenter.channel_order
    for known in CONVENTIONS:
        values = torch.tensor([*known.mean, *known.std])
        if known.channel_order == order and torch.allclose(torch.tensor([*mean, *std]), values, rtol=0.02, atol=5e-3):
            return known
    rounded = ["/".join(f"{value:.3g}" for value in values) for values in (mean, std)]
    return Convention(f"{order.upper()}, mean {rounded[0]}, deviation {rounded[1]}", order, mean, std)


def rank_preprocessing(segmenter: Segmenter, images: Tensor) -> list[Ranked]:
    """All conventions, and the one that the network has, the best first.

    A network with BatchNorm keeps the statistics of its training, and the inputs of its layers should lie near to them
    (mean over layers and channels of the Kullback-Leibler divergence between normal distributions, from the images' to
    the kept ones): that tells ranges and means apart, but hardly the order of channels, which in streets are nearly
    alike. What it cannot tell (`CLEARLY`), and a network without BatchNorm, is told by InfoMax: predictions that are
    sure of each pixel and use many classes.

    Args:
        segmenter: Its preprocessing, modes and weights are as before afterwards.
        images: (B, 3, H, W) RGB in [0, 1], about eight.
    """
    own = declared(segmenter)
    tried = [own, *(convention for convention in CONVENTIONS if convention != own)]
    ranked = [Ranked(convention, *_fit(segmenter, images, convention)) for convention in tried]
    limit = _limit(ranked)
    return sorted(
        ranked, key=lambda each: (max(each.divergence, limit), -each.infomax if each.divergence <= limit else 0.0)
    )


def _limit(ranked: list[Ranked]) -> float:
    """The divergence up to which the statistics do not speak against a convention."""
    return CLEARLY * min(each.divergence for each in ranked)


def clear_winner(segmenter: Segmenter, ranked: list[Ranked]) -> Convention | None:
    """The best convention where it is another one than the network's own, and clearly better; None otherwise."""
    best = ranked[0]
    own = next(each for each in ranked if each.convention == declared(segmenter))
    if own.divergence > _limit(ranked) or best.infomax > own.infomax + MORE_INFORMATION:
        return best.convention
    return None


@torch.inference_mode()
def _fit(segmenter: Segmenter, images: Tensor, convention: Convention) -> tuple[float, float]:
    """Divergence and InfoMax."""
    divergences: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(eval_mode(segmenter))
        stack.enter_context(_preprocessed(segmenter, convention))
        for layer in batch_norm_layers(segmenter).values():
            stack.enter_context(layer.register_forward_pre_hook(partial(_observe, divergences)))
        logits = torch.cat([segmenter(image[None]) for image in images])
    divergence = float(torch.stack(divergences).mean()) if divergences else 0.0
    return divergence, _information(logits)


def _observe(divergences: list[Tensor], layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, _BatchNorm)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    features = inputs[0].float()
    if features.numel() == features.shape[1]:  # one value per channel has no variance
        return
    variance, mean = torch.var_mean(features, dim=[dim for dim in range(features.ndim) if dim != 1])
    kept = layer.running_var + layer.eps
    ratio = (variance + layer.eps) / kept
    distance = (mean - layer.running_mean).square() / kept
    divergences.append(((ratio + distance - 1 - ratio.log()) / 2).mean())


def _information(logits: Tensor) -> float:
    """Entropy of the mean prediction minus mean entropy, in nats."""
    logs = logits.float().log_softmax(dim=1)
    each = -(logs.exp() * logs).sum(dim=1).mean()
    mean = logs.exp().mean(dim=(0, 2, 3))
    return float(-torch.xlogy(mean, mean).sum() - each)


@contextmanager
def _preprocessed(segmenter: Segmenter, convention: Convention) -> Iterator[None]:
    before = segmenter.channel_order, segmenter.mean.clone(), segmenter.std.clone()
    _set(segmenter, convention.channel_order, torch.tensor(convention.mean), torch.tensor(convention.std))
    try:
        yield
    finally:
        _set(segmenter, *before)


def _set(segmenter: Segmenter, order: ChannelOrder, mean: Tensor, std: Tensor) -> None:
    segmenter.channel_order = order
    segmenter.mean.copy_(mean.view(1, 3, 1, 1))
    segmenter.std.copy_(std.view(1, 3, 1, 1))
