"""How long a network takes."""

import time

import torch
from torch import nn

from sfda.networks.segmenter import eval_mode

REPEATS = 3


@torch.inference_mode()
def pass_seconds(network: nn.Module, size: tuple[int, int]) -> float:
    """Seconds of a forward pass of one image of `size` (height, width), on the GPU where there is one: the median.

    The network is moved there and back.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    network.to(device)
    with eval_mode(network):
        seconds = sorted(_timed(network, images) for _ in range(REPEATS))
    network.to("cpu")
    return seconds[REPEATS // 2]


def _timed(network: nn.Module, images: torch.Tensor) -> float:
    begun = time.perf_counter()
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun
