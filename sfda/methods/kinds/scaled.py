"""Methods that show their network images at a size of its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sfda.errors import UserError
from sfda.methods.kinds.method import MULTI_SCALES, Method
from sfda.networks.resampling import scale_images


class ScaledMethod(Method):
    """A method whose network sees images at `input_scale` times their size, by default as its source checkpoint did.

    The factor is part of its own checkpoints, under ``input_scale``, so that whatever predicts with one does the same.
    """

    def start_from_size(self, scale: float) -> None:
        """Show the network images as the source checkpoint's method did."""
        self.input_scale = scale

    def single_view_probabilities(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """At the network's size; see `Method.single_view_probabilities`."""
        return super().single_view_probabilities(scale_images(images, self.input_scale), size)

    def multi_scale_probabilities(
        self, images: Tensor, size: tuple[int, int], scales: Sequence[float] = MULTI_SCALES
    ) -> Tensor:
        """Around the network's size, each image scaled once; see `Method.multi_scale_probabilities`."""
        predict = super().single_view_probabilities
        scales = [scale * self.input_scale for scale in scales]
        return mean_over_views(lambda view: predict(view, size), images, scales)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The network's size."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["input_scale"] = self.input_scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The same; checkpoints of before have none, and 1.

        Raises:
            UserError: it is no factor.
        """
        super().on_load_checkpoint(checkpoint)
        scale = checkpoint.get("input_scale", 1.0)
        if not isinstance(scale, float) or not 0 < scale < math.inf:
            name = type(self).__name__
            raise UserError(
                f"this checkpoint of {name} does not say at which size its network sees images: fit it again"
            )
        self.input_scale = scale


def mean_over_views(predict: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float]) -> Tensor:
    """Mean of the probabilities (B, C, h, w) that `predict` gives images (B, 3, H, W) at `scales` and mirrored."""
    views = [scale_images(images, scale) for scale in scales]
    pairs = [predict(view) + predict(view.flip(-1)).flip(-1) for view in views]
    return torch.stack(pairs).sum(0) / (2 * len(scales))
