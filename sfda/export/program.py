"""All that a run predicts with, as one module of images alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfda.data.label_spaces import Lookup
from sfda.methods import Method
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
        # As a convolution: the exporter to ONNX gets sums by index wrong, and says nothing.
        self.groups: Tensor | None
        self.register_buffer("groups", None if groups is None else _as_convolution(groups, num_scored))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 RGB in [0, 1] → probabilities (B, C_scored, H, W)."""
        inputs = images if self.size is None else averaged(images, self.size)
        return self.scored(self.method.predict_probabilities(inputs, (images.shape[-2], images.shape[-1])))

    def scored(self, probabilities: Tensor) -> Tensor:
        """Probabilities of the method's classes over the scored ones: (B, C, H, W) → (B, C_scored, H, W)."""
        if self.groups is None:
            return probabilities
        return F.conv2d(probabilities, self.groups)


def _as_convolution(groups: Lookup, num_scored: int) -> Tensor:
    """(C_scored, C, 1, 1): 1 where a class belongs to a group."""
    belongs = torch.arange(num_scored)[:, None] == torch.from_numpy(groups).long()
    return belongs.float()[..., None, None]
