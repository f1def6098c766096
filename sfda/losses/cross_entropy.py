"""Cross-entropy that survives an image without labels."""

import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.losses.mean import number_of_pixels
from sfda.ranks import ALONE, Ranks


def cross_entropy(logits: Tensor, labels: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 with a gradient where there are none.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) train ids, 255 = ignore.
        ranks: Whose labelled pixels are counted, see `sfda.losses.mean.mean_over_pixels`.
    """
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / number_of_pixels(labels != IGNORE, total.dtype, ranks)
