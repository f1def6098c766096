"""Symmetric cross-entropy: a cross-entropy that noisy labels do less harm to.

Reverse cross-entropy as in symmetric cross-entropy learning (arXiv 1908.06112), the weighted sum as in Cal-SFDA
(arXiv 2308.03003); implemented from the published descriptions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.losses.mean import number_of_pixels
from sfda.metrics.functional import at_least_float32
from sfda.ranks import ALONE, Ranks


def symmetric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    ce_weight: float = 0.1,
    rce_weight: float = 1.0,
    floor: float = 1e-4,
    ranks: Ranks = ALONE,
) -> Tensor:
    """``ce_weight · CE_w + rce_weight · RCE`` over the labelled pixels.

    ``CE_w = Σ w_y · CE / Σ w_y``. RCE swaps the roles of prediction and label, the mean of
    ``−Σ_c p_c · log(max(onehot_c, floor))``, which is ``−log(floor) · (1 − p_y)``: it is bounded, so that a wrong
    label can do only so much.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) train ids, uint8 or int64, 255 = unlabelled.
        class_weights: (C,) weights w of the classes in CE, none negative; None: all equal.
        ce_weight: Weight of CE_w.
        rce_weight: Weight of RCE.
        floor: What a label gives the other classes, in (0, 1).
        ranks: Whose labelled pixels the two means are over, see `sfda.losses.mean.mean_over_pixels`.

    Returns:
        Scalar, at least float32; 0 with a gradient where no pixel is labelled.
    """
    labels = labels.long()
    labelled = labels != IGNORE
    nll = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE, reduction="none")
    weights = labelled.to(nll.dtype)
    if class_weights is not None:
        weights = weights * class_weights.to(nll.dtype)[torch.where(labelled, labels, 0)]
    ce = (weights * nll).sum() / ranks.mean(weights.sum()).clamp(min=torch.finfo(nll.dtype).tiny)
    # p_y = exp(−NLL); at unlabelled pixels the NLL is 0, so 1 − p_y is too.
    missing = -torch.expm1(-nll).sum() / number_of_pixels(labelled, nll.dtype, ranks)
    return ce_weight * ce - rce_weight * math.log(floor) * missing
