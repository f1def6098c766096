"""How much a model agrees with itself between views of an image: a label-free score."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.metrics.functional import top_label

Predict = Callable[[Tensor, tuple[int, int]], Tensor]
"""Images (B, 3, H, W) and a size → probabilities (B, C, *size)."""


def jitter_colours(images: Tensor, strength: float = 0.2) -> Tensor:
    """Images (B, 3, H, W) with fixed pseudo-random channel gains and contrast, within ±`strength`; still in [0, 1].

    The draws depend on nothing but the position in the batch, so that every model is shown the same views.
    """
    generator = torch.Generator().manual_seed(0)
    draws = 1 + strength * (2 * torch.rand(len(images), 4, generator=generator) - 1)
    draws = draws.to(images)[:, :, None, None]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * draws[:, 3:] + mean).mul(draws[:, :3]).clamp(0, 1)


def views(images: Tensor) -> list[tuple[Tensor, bool]]:
    """The views of images (B, 3, H, W), and whether each is mirrored: flip, scales 0.75 and 1.25, colour jitter."""
    scaled = [
        F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False, antialias=True)
        for scale in (0.75, 1.25)
    ]
    return [(images.flip(-1), True), *((view, False) for view in scaled), (jitter_colours(images), False)]


def view_agreement(predict: Predict, images: Tensor, plain: Tensor) -> Tensor:
    """Share of pixels that keep their class in another view, mean over the four `views`: (B,) in [0, 1].

    `images` are (B, 3, H, W) RGB in [0, 1], `plain` (B, H, W) the classes predicted for them as they are.
    """
    size, shares = (images.shape[-2], images.shape[-1]), []
    for view, mirrored in views(images):
        _, classes = top_label(predict(view, size))
        shares.append(((classes.flip(-1) if mirrored else classes) == plain).double().mean(dim=(1, 2)))
    return torch.stack(shares).mean(dim=0)


def ranks(values: Tensor) -> Tensor:
    """Rank of each of (N,) values, 0 for the smallest; equal values share the mean of their ranks."""
    below = (values[:, None] > values[None, :]).sum(dim=1)
    equal = (values[:, None] == values[None, :]).sum(dim=1)
    return below + (equal - 1) / 2
