"""Cross-entropy that survives an image without labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 with a gradient where there are none.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) train ids, 255 = ignore.
    """
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)
