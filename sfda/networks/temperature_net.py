"""The network that gives every pixel of a teacher's prediction a temperature."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from sfda.metrics.functional import at_least_float32
from sfda.networks.segmenter import padded_size

SMALLEST, LARGEST = 0.05, 20.0
"""Bounds of the temperature."""


class TemperatureNet(nn.Module):
    """Meta Temperature Network of DA-Cal (arXiv 2602.20860), implemented from the published description.

    Features and logits are each mapped to `hidden` channels by a 1x1 convolution, added, and mapped to one number a by
    a third; ``T = exp(ln 20 · tanh(a))`` lies in [0.05, 20]. The last convolution starts with zeros: T = 1 exactly.
    The three convolutions are this project's choice.

    Args:
        feature_channels: D.
        num_classes: C.
        hidden: Channels in between.
        multiple: The features are those of images padded, below and on the right, to multiples of this many pixels.
    """

    def __init__(self, feature_channels: int, num_classes: int, hidden: int = 32, multiple: int = 1) -> None:
        super().__init__()
        self.multiple = multiple
        self.from_features = nn.Conv2d(feature_channels, hidden, kernel_size=1)
        self.from_logits = nn.Conv2d(num_classes, hidden, kernel_size=1)
        self.last = nn.Conv2d(hidden, 1, kernel_size=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Temperatures, in the precision of the parameters, also under autocast where this is called outside of it.

        Args:
            features: (B, D, h, w).
            logits: (B, C, H, W).

        Returns:
            (B, 1, H, W) in [0.05, 20].
        """
        near = self.from_features(at_least_float32(features))
        height, width = logits.shape[-2:]
        padded = padded_size((height, width), self.multiple)
        near = F.interpolate(near, list(padded), mode="bilinear", align_corners=False)[..., :height, :width]
        a: Tensor = self.last(F.relu(near + self.from_logits(at_least_float32(logits))))
        # The exponential may miss the bounds by a rounding.
        return (math.log(LARGEST) * a.tanh()).exp().clamp(SMALLEST, LARGEST)
