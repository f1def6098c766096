"""Cross-entropy against probability vectors instead of classes."""

import torch
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.losses.mean import mean_over_pixels
from sfda.metrics.functional import at_least_float32


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Probability vectors of labels (B, H, W), 255 = zeros: (B, C, H, W)."""
    batch, height, width = labels.shape
    labelled = (labels != IGNORE).unsqueeze(1)
    vectors = torch.zeros(batch, num_classes, height, width, dtype=dtype, device=labels.device)
    return vectors.scatter_(1, labels.long().unsqueeze(1).where(labelled, 0), labelled.to(dtype))


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, weight: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Mean over the real pixels of ``−w · Σ_c y_c · log softmax(z)_c``; weights are not divided out.

    Can be differentiated twice, by logits and by targets.

    Args:
        logits: z (B, C, H, W); half precision is raised to float32.
        targets: y (B, C, H, W), sums to 1 over C in every real pixel.
        weight: w (B, H, W); None: 1 everywhere.
        valid: (B, H, W) bool, False where a pixel takes part in nothing; None: all pixels are real.

    Returns:
        Scalar, at least float32; 0 with a gradient where no pixel is real.
    """
    logits = at_least_float32(logits)
    # Σ_c y_c = 1, so that one exponential a pixel and class is enough.
    pixels = logits.logsumexp(dim=1) - (targets * logits).sum(dim=1)
    if weight is not None:
        pixels = weight * pixels
    return pixels.mean() if valid is None else mean_over_pixels(pixels, valid)
