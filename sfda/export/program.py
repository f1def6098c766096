"""All that a run predicts with, as one module of images alone."""

import torch
from torch import Tensor, nn

from sfda.data.label_spaces import Lookup
from sfda.methods import Method
from sfda.metrics.functional import group_probabilities
from sfda.networks.resampling import averaged


class ExportedMethod(nn.Module):
    """RGB images in, probabilities over the scored classes out, at the images' own size.

    Args:
        method: In eval mode, on the CPU.
        size: (height, width) that images are brought to before the network, as `sfda predict` does; None: none. They
            are not rounded to 8 bits afterwards, as files are, so a value differs by at most half a grey level.
        groups: The scored class of every class that the method predicts, (C,); None: the same.
        num_scored: Number of scored classes.
    """

    def __init__(self, method: Method, size: tuple[int, int] | None, groups: Lookup | None, num_scored: int) -> None:
        super().__init__()
        self.method = method
        self.size = size
        self.num_scored = num_scored
        self.groups: Tensor | None
        self.register_buffer("groups", None if groups is None else torch.from_numpy(groups).long())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 RGB in [0, 1] → probabilities (B, C_scored, H, W)."""
        inputs = images if self.size is None else averaged(images, self.size)
        return self.scored(self.method.predict_probabilities(inputs, (images.shape[-2], images.shape[-1])))

    def scored(self, probabilities: Tensor) -> Tensor:
        """Probabilities of the method's classes over the scored ones: (B, C, H, W) → (B, C_scored, H, W)."""
        if self.groups is None:
            return probabilities
        return group_probabilities(probabilities, self.groups, self.num_scored)
