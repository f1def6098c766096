"""Colours as the first layers of a network know them from its training: a gain and an offset per channel.

Source images are not needed: the running statistics of the BatchNorm layers nearest the image say what those layers
are used to.
"""

from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfda.networks.batch_norm import Statistics, batch_norm_layers, input_layers
from sfda.networks.segmenter import Segmenter, eval_mode
from sfda.ranks import mean_over_ranks

Correction = tuple[Tensor, Tensor]
"""Gain and offset of R, G, B in [0, 1], each (1, 3, 1, 1): x → gain · x + offset."""
UNCHANGED: Correction = (torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1))

LARGEST = (192, 256)
"""Height and width that images are reduced to: colours need no more, and gradients of large ones much memory."""
_EPS = 1e-5
_ITERATIONS = 30


class _Reached(BaseException):
    """All layers that are looked at have had their input; a `Segmenter` takes an Exception for a failing network."""


def fit_input_correction(network: Segmenter, images: Sequence[Tensor], source: Statistics) -> Correction:
    """The gain and offset with which the first layers' inputs lie nearest to the statistics of the source.

    Nearest by the mean over layers and channels of the Kullback-Leibler divergence between normal distributions, from
    the images' to the source's; the layers are those BatchNorm layers whose input depends on no other one. All
    processes call it together, each with images of its own, and get the mean of what they find.

    Args:
        network: As it is for the source, and afterwards too.
        images: Images (3, H, W), RGB in [0, 1].
        source: Statistics of every BatchNorm layer, of which there is one at least.
    """
    layers = input_layers(network, torch.zeros(1, 3, 64, 64, device=network.mean.device))
    batch = _together(images)
    values = torch.zeros(2, 1, 3, 1, 1, device=network.mean.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([values], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def divergence() -> Tensor:
        optimizer.zero_grad()
        loss = _divergence(network, values[0].exp() * batch + values[1], source, layers)
        (values.grad,) = torch.autograd.grad(loss, [values])
        return loss.detach()

    with eval_mode(network), torch.enable_grad():
        optimizer.step(divergence)  # type: ignore[no-untyped-call]
    gain, offset = mean_over_ranks(values.nan_to_num(0, 0, 0))  # of images of one colour there may be no best one
    return gain.exp(), offset


def correct_input(
    network: Segmenter, preprocessing: tuple[Tensor, Tensor], correction: Correction, share: float
) -> None:
    """Let a network see images nearer to gain · x + offset, by its preprocessing alone.

    Args:
        network: Its mean and deviation are written.
        preprocessing: Mean and deviation, (1, 3, 1, 1) each, that it has without a correction.
        correction: Gain and offset.
        share: How near, in [0, 1]: 0 is x itself, exactly.
    """
    mean, std = preprocessing
    gain, offset = (each.to(mean) for each in correction)
    gain, offset = 1 + share * (gain - 1), share * offset
    network.mean.copy_((mean - offset) / gain)
    network.std.copy_(std / gain)


def _together(images: Sequence[Tensor]) -> Tensor:
    """One batch of images of any sizes, each stretched to the smallest height and width, `LARGEST` at most."""
    size = [min(most, *(image.shape[axis] for image in images)) for axis, most in zip((-2, -1), LARGEST, strict=True)]
    return torch.cat([F.interpolate(image[None], size, mode="bilinear", antialias=True) for image in images])


def _divergence(network: Segmenter, images: Tensor, source: Statistics, layers: Collection[str]) -> Tensor:
    found: list[Tensor] = []

    def look(name: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(_normal_divergence(inputs[0].float(), *source[name]))
        if len(found) == len(layers):
            raise _Reached

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(batch_norm_layers(network)[name].register_forward_pre_hook(partial(look, name)))
        with suppress(_Reached):
            network(images)
    return torch.stack(found).mean()


def _normal_divergence(features: Tensor, source_mean: Tensor, source_variance: Tensor) -> Tensor:
    variance, mean = torch.var_mean(features, dim=[dim for dim in range(features.ndim) if dim != 1], correction=0)
    kept = source_variance.float() + _EPS
    ratio = (variance + _EPS) / kept
    return ((ratio + (mean - source_mean.float()).square() / kept - 1 - ratio.log()) / 2).mean()
