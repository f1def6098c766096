"""Negative learning: what a pixel is not.

Implemented from the published description of Cal-SFDA (arXiv 2308.03003): a class in the middle of a pixel's ranking
is its complementary label, which the pixel most likely does not have.
"""

import numpy as np
import torch
from torch import Tensor

from sfda.losses.mean import mean_over_pixels
from sfda.metrics.functional import at_least_float32
from sfda.ranks import ALONE, Ranks

_FLOOR = 1e-5


def complementary_rank(num_classes: int, generator: np.random.Generator) -> int:
    """Draw the rank of the complementary label: ``C // 2 + U{−3..3}``, within 2..C; the same in all processes."""
    drawn = num_classes // 2 + int(generator.integers(-3, 3, endpoint=True))
    return max(2, min(drawn, num_classes))


def negative_learning(logits: Tensor, rank: int, valid: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean over the real pixels of ``−log(1 − p_k)``, k the class that is ranked `rank`-th by its probability.

    Args:
        logits: (B, C, H, W).
        rank: 1 (the most probable class) to C; 2 is the runner-up.
        valid: (B, H, W) bool, False where a pixel is padding.
        ranks: Whose pixels are counted, see `sfda.losses.mean.mean_over_pixels`.

    Returns:
        Scalar in nats, at least float32; 0 with a gradient where no pixel is valid. A pixel adds at most −log 1e-5,
        without a gradient from there on, and from rank 2 on at most ln 2.
    """
    log_p = at_least_float32(logits).log_softmax(1)
    # On a CPU, topk takes three quarters of kthvalue's time and 40 % of sort's. The copy lets its other ranks go.
    complementary = log_p.detach().topk(rank, dim=1).indices[:, -1:].clone()
    p = log_p.gather(1, complementary).squeeze(1).exp()
    pixels = -torch.log1p(-p.clamp(max=1 - _FLOOR))
    return mean_over_pixels(pixels, valid, ranks)
