"""Small changes of an image under which a model that sees what is there keeps its classes.

No method of the project trains on them. (Views, mirror images and colours some of them do.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.metrics.functional import top_label
from sfda.metrics.view_agreement import Predict

NOISE = 0.04
GAMMAS = (0.75, 1.35)


def perturbations(images: Tensor) -> list[Tensor]:
    """Images (B, 3, H, W) in [0, 1] with noise, brighter, darker, and softened; the same draws at each call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape[1:], generator=generator).to(images)
    softened = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return [(images + NOISE * noise).clamp(0, 1), *(images**gamma for gamma in GAMMAS), softened]


def perturbed_agreement(predict: Predict, images: Tensor, plain: Tensor) -> Tensor:
    """Share of pixels that keep their class under `perturbations`, mean over the four of them: (B,) in [0, 1].

    `images` are (B, 3, H, W) RGB in [0, 1], `plain` (B, H, W) the classes predicted for them as they are.
    """
    size = (images.shape[-2], images.shape[-1])
    changed = [top_label(predict(other, size))[1] for other in perturbations(images)]
    return torch.stack([(classes == plain).double().mean(dim=(1, 2)) for classes in changed]).mean(dim=0)
