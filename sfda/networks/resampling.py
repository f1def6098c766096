"""Changes of the size of images; for ONNX, none of whose operators averages over areas, as products with matrices."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.errors import UserError

PARTS = 16
"""Scales that an exported program may have are multiples of 1 / this."""


def scale_images(images: Tensor, scale: float) -> Tensor:
    """Images (B, 3, H, W) rescaled bilinearly (antialiased) by a factor."""
    if scale == 1:
        return images
    if torch.onnx.is_in_onnx_export():  # none of whose operators is antialiased as torch's is
        height, width = (_scaled_exactly(side, scale) for side in images.shape[-2:])
        return antialiased(images, (height, width))
    size = scaled_size(images.shape[-2:], scale)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width of an image of `size` (H, W) rescaled by a factor."""
    if torch.compiler.is_compiling():  # of a program for all sizes, which cannot hold Python's rounding
        height, width = (_scaled_exactly(side, scale) for side in size)
    else:
        height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def _scaled_exactly(side: int, scale: float) -> int:
    """A side times a multiple of 1/16, halves to even, in the integers that a traced program may hold."""
    if not (PARTS * scale).is_integer():
        raise UserError(f"views at scale {scale} cannot be exported: only multiples of 1/{PARTS}")
    parts = side * int(PARTS * scale)
    return (parts + PARTS // 2 - 1 + parts // PARTS % 2) // PARTS


def antialiased(images: Tensor, size: Sequence[int]) -> Tensor:
    """What `torch.nn.functional.interpolate` does with ``bilinear`` and ``antialias``: (B, 3, H, W) → (B, 3, *size)."""
    down, across = (_triangles(_length(images, axis), wanted) for axis, wanted in ((-2, size[0]), (-1, size[1])))
    return down.to(images.dtype) @ images @ across.to(images.dtype).T


def averaged(images: Tensor, size: Sequence[int]) -> Tensor:
    """What `sfda.data.transforms.resize_image` does, but for the rounding to 8 bits: (B, 3, H, W) → (B, 3, *size).

    OpenCV, other than this, leaves out shares of less than a thousandth of a pixel.
    """
    height, width = _length(images, -2), _length(images, -1)
    shrinks, both_shrink = height > size[0], (height > size[0]) & (width >= size[1])
    down, across = (
        _shares(side, wanted, shrinks, both_shrink) for side, wanted in ((height, size[0]), (width, size[1]))
    )
    return down.to(images.dtype) @ images @ across.to(images.dtype).T


def _length(images: Tensor, axis: int) -> Tensor:
    """A side of images as a number that a traced program follows, float64 ()."""
    return torch.full((), images.shape[axis], dtype=torch.float64)


def _triangles(pixels: Tensor, wanted: int) -> Tensor:
    """Triangles around the centres of the `wanted` pixels, as wide as these are: (wanted, pixels), rows of sum 1."""
    scale = pixels / wanted
    centre = (_numbers(wanted) + 0.5) * scale
    away = (_numbers(pixels) + 0.5 - centre[:, None]).abs()
    triangles = (1 - away / scale.clamp(min=1)).clamp(min=0)
    shares: Tensor = triangles / triangles.sum(1, keepdim=True)
    return shares


def _shares(pixels: Tensor, wanted: int, shrinks: Tensor, both_shrink: Tensor) -> Tensor:
    """Shares of a line's pixels in each of the `wanted` ones: (wanted, pixels), rows of sum 1.

    Area averaging where both sides shrink; otherwise linear between the two nearest, which OpenCV, asked for area
    averaging, looks up where the areas begin.
    """
    scale = pixels / wanted
    index = _numbers(wanted)
    pixel = _numbers(pixels)
    starts, ends = (index * scale)[:, None], ((index + 1) * scale)[:, None]
    areas = (torch.minimum(ends, pixel + 1) - torch.maximum(starts, pixel)).clamp(min=0) / scale
    first = (index * scale).floor()
    ahead = (index + 1) - (first + 1) / scale
    at_start = first + torch.where(ahead > 0, ahead - ahead.floor(), torch.zeros_like(ahead))
    centre = torch.where(shrinks, at_start, (index + 0.5) * scale - 0.5).clamp(min=0)
    linear = (1 - (torch.minimum(centre, pixels - 1)[:, None] - pixel).abs()).clamp(min=0)
    return torch.where(both_shrink, areas, linear)


def _numbers(count: Any) -> Tensor:
    """0, 1, … below `count`, a number or a tensor of one: float64."""
    return torch.arange(count, dtype=torch.float64)
