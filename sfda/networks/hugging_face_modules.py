"""Models of `transformers` as modules from images to one map."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Windowed(nn.Module):
    """A model as a function from normalised images (B, 3, H, W) to one map.

    With a `window`, images are brought to this length on their shorter side and cut along the longer one into squares
    that overlap evenly; the maps are averaged where they do, and brought to the images' size. This is how EoMT takes
    images of any size (arXiv 2503.19108).

    Args:
        model: Of `transformers`.
        window: Height and width of the images that the model takes; None: it takes any.
    """

    def __init__(self, model: nn.Module, window: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.window = window

    def forward(self, images: Tensor) -> Tensor:
        """The map (B, K, h, w), in windows where that is needed."""
        if self.window is None or images.shape[-2:] == (self.window, self.window):
            return self.whole(images)
        scaled = F.interpolate(images, _short_side(images.shape[-2:], self.window), mode="bilinear")
        along = 2 if scaled.shape[2] > scaled.shape[3] else 3
        total = count = torch.zeros((), device=images.device)
        for start in window_starts(scaled.shape[along], self.window):
            part = self.whole(scaled.narrow(along, start, self.window))
            part = F.interpolate(part, (self.window, self.window), mode="bilinear")
            margin = (start, scaled.shape[along] - start - self.window)
            padding = (0, 0, *margin) if along == 2 else margin
            total = total + F.pad(part, padding)
            count = count + F.pad(torch.ones_like(part[:, :1]), padding)
        return F.interpolate(total / count, images.shape[-2:], mode="bilinear")

    def whole(self, images: Tensor) -> Tensor:
        """The map of images that the model takes as they are."""
        raise NotImplementedError


class PerPixel(Windowed):
    """A semantic model, whose output has `logits` (B, K, h, w)."""

    def whole(self, images: Tensor) -> Tensor:
        """Its logits."""
        logits: Tensor = self.model(images).logits
        return logits


class Universal(Windowed):
    """A model whose output has `class_queries_logits` (B, Q, K + 1) and `masks_queries_logits` (B, Q, h, w)."""

    def whole(self, images: Tensor) -> Tensor:
        """Semantic scores (B, K, H, W), Σ_q softmax(class)_q · sigmoid(mask)_q, which need not sum to 1.

        The masks are brought to the images' size before, as in Mask2Former (arXiv 2112.01527).
        """
        output: Any = self.model(images)
        masks = F.interpolate(output.masks_queries_logits, images.shape[-2:], mode="bilinear")
        classes = output.class_queries_logits.softmax(dim=-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())


def window_starts(length: int, window: int) -> list[int]:
    """Where the fewest windows that cover a length start, with even overlaps."""
    count = math.ceil(length / window)
    return [round(index * (length - window) / max(1, count - 1)) for index in range(count)]


def _short_side(size: torch.Size, window: int) -> tuple[int, int]:
    scale = window / min(size)
    height, width = (max(window, round(length * scale)) for length in size)
    return height, width
