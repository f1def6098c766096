"""The stages of an encoder: which of its modules give maps, with how many channels, and how small."""

from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn

from sfda.networks.outputs import named_maps
from sfda.networks.segmenter import Segmenter, eval_mode, padded_size

SIDE = 128
"""Height and width of the image that is passed through."""
DEPTH = 2
"""Names of at most so many parts are looked at."""


class Stage(NamedTuple):
    """A module and the maps that it gives."""

    name: str
    """As `Segmenter.forward` takes it."""
    channels: int
    stride: int
    """Pixels of the image per cell, in either direction."""


@torch.no_grad()
def encoder_stages(network: Segmenter) -> list[Stage]:
    """The modules after which maps change their size or channels, in the order of one small pass.

    Modes and buffers are as before afterwards.
    """
    seen: list[Stage] = []
    side, _ = padded_size((SIDE, SIDE), network.multiple)

    def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        found = next(reversed(named_maps(output).values()), None)
        if found is not None and found.shape[-2] == found.shape[-1]:  # else tokens (B, h, w, D), and no map
            seen.append(Stage(name, found.shape[1], side // found.shape[-1]))

    with eval_mode(network), ExitStack() as hooks:
        modules = network.parts()["backbone"].named_modules()
        for name, module in ((name, module) for name, module in modules if name and name.count(".") < DEPTH):
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        network(network.mean.expand(1, -1, SIDE, SIDE))
    return [list(equal)[-1] for _, equal in groupby(seen, key=lambda stage: stage[1:])]


def describe_stages(network: Segmenter) -> str:
    """The stages in one line."""
    return ", ".join(f"{name} ({channels} channels, 1/{stride})" for name, channels, stride in encoder_stages(network))
