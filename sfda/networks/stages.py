"""The stages of an encoder: which of its modules give maps, with how many channels, and how small."""

from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn

from sfda.networks.segmenter import Segmenter, eval_mode, feature_maps, padded_size

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
        # What is not square is no map of a square image: tokens (B, h, w, D).
        maps = [found for found in feature_maps(output)[-1:] if found.shape[-2] == found.shape[-1]]
        seen.extend(Stage(name, found.shape[1], side // found.shape[-1]) for found in maps)

    with eval_mode(network), ExitStack() as hooks:
        for name, module in network.parts()["backbone"].named_modules():
            if name and name.count(".") < DEPTH:
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        network(network.mean.expand(1, -1, SIDE, SIDE))
    return [list(equal)[-1] for _, equal in groupby(seen, key=lambda stage: stage[1:])]


def describe_stages(network: Segmenter) -> str:
    """The stages in one line."""
    return ", ".join(f"{name} ({channels} channels, 1/{stride})" for name, channels, stride in encoder_stages(network))
