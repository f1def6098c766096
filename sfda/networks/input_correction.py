"""Colours as the first layers of a network know them from its training: a gain and an offset per channel.

Source images are not needed: the running statistics of the BatchNorm layers nearest the image say what those layers
are used to.
"""

from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sfda.networks.batch_norm import Statistics, batch_norm_layers
from sfda.networks.segmenter import Segmenter, eval_mode
from sfda.ranks import mean_over_ranks

Correction = tuple[Tensor, Tensor]
"""Gain and offset of R, G, B in [0, 1], each (1, 3, 1, 1): x → gain · x + offset."""

_EPS = 1e-5
_ITERATIONS = 40


class _Reached(BaseException):
    """All layers that are looked at have had their input; a `Segmenter` takes an Exception for a failing network."""


def fit_input_correction(
    network: Segmenter, images: Sequence[Tensor], source: Statistics, layers: Collection[str]
) -> Correction:
    """The gain and offset with which the layers' inputs lie nearest to the statistics of the source.

    Nearest by the mean over layers and channels of the Kullback-Leibler divergence between normal distributions, from
    the images' to the source's. All processes call it, each with images of its own, and get the mean of what they find.

    Args:
        network: In eval mode inside, its buffers as they are for the source.
        images: Batches (B, 3, H, W) RGB in [0, 1].
        source: Statistics of every layer in `layers`.
        layers: BatchNorm layers whose input does not depend on another one.
    """
    values = torch.zeros(2, 1, 3, 1, 1, device=network.mean.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([values], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def divergence() -> Tensor:
        optimizer.zero_grad()
        corrected = [values[0].exp() * batch + values[1] for batch in images]
        loss = torch.stack([_divergence(network, batch, source, layers) for batch in corrected]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with eval_mode(network), torch.enable_grad():
        optimizer.step(divergence)  # type: ignore[no-untyped-call]
    gain, offset = mean_over_ranks(values)
    return gain.exp(), offset


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
    variance, mean = torch.var_mean(features, dim=[dim for dim in range(features.ndim) if dim != 1])
    kept = source_variance.float() + _EPS
    ratio = (variance + _EPS) / kept
    return ((ratio + (mean - source_mean.float()).square() / kept - 1 - ratio.log()) / 2).mean()


def correct_input(network: Segmenter, preprocessing: tuple[Tensor, Tensor], correction: Correction | None) -> None:
    """Let a network see gain · x + offset for images x, by its preprocessing alone.

    Args:
        network: Its mean and deviation are written.
        preprocessing: Mean and deviation, (1, 3, 1, 1) each, that it has without a correction.
        correction: Gain and offset; None: none.
    """
    mean, std = preprocessing
    gain, offset = (torch.ones_like(mean), torch.zeros_like(mean)) if correction is None else correction
    network.mean.copy_((mean - offset) / gain)
    network.std.copy_(std / gain)
