"""Cross-entropy that survives an image without labels."""

import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.losses.mean import number_of_pixels
from sfda.ranks import ALONE, Ranks


def cross_entropy(logits: Tensor, labels: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean cross-entropy over the labelled pixels (of all `ranks`); 0 with a gradient where there are none.

    Logits are (B, C, H, W), labels (B, H, W) train ids, 255 = ignore.
    """
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / number_of_pixels(labels != IGNORE, total.dtype, ranks)
