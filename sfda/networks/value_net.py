"""The value net of Cal-SFDA: how far an image's confidence can be trusted, from the backbone's features alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128
GRID = 4


class ValueNet(nn.Module):
    """Estimates the calibration error of an image from features of the segmenter's backbone.

    BatchNorm, 1x1 convolution to 128 channels without bias (Xavier), bilinear resize to 4x4, one linear layer,
    sigmoid. Implemented from the published description of Cal-SFDA (arXiv 2308.03003, stage 2).

    Args:
        channels: D of the features, `Segmenter.feature_channels`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.reduce = nn.Conv2d(channels, WIDTH, kernel_size=1, bias=False)
        self.estimate = nn.Linear(WIDTH * GRID * GRID, 1)
        nn.init.xavier_uniform_(self.reduce.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Estimated ECE: features (B, D, h, w) of any size → (B,) in (0, 1), float32 under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            normalised = self.norm(features.to(self.reduce.weight.dtype))
            # The resize comes first: it commutes with a 1x1 convolution without bias, which is then 16 cells' work.
            grid = F.interpolate(normalised, (GRID, GRID), mode="bilinear", align_corners=False)
            return torch.sigmoid(self.estimate(self.reduce(grid).flatten(1))).squeeze(1)
