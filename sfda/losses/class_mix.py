"""ClassMix: half of the classes of one image cut out and pasted onto another (Olsson et al., arXiv 2007.07936).

Implemented from the published description; across domains it is DACS (Tranheden et al., arXiv 2007.08702).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE


def class_halves(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The pixels of a random half of the classes of every image, and those of its other classes.

    Half of an odd number is rounded up. Drawn by torch's global generator of the device. From labels (B, H, W), 255 =
    no class, to two (B, H, W) bool, nowhere both True; neither holds a pixel without a class.
    """
    labelled = labels != IGNORE
    slots = labels.long().where(labelled, num_classes)
    flat = slots.flatten(1)
    present = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    present = present.scatter_(1, flat, True)[:, :num_classes]
    # Absent classes draw a number after all others: the ranks from 0 on are those of the present ones.
    draws = torch.rand(present.shape, device=labels.device).masked_fill_(~present, 2)
    rank = draws.argsort(dim=1).argsort(dim=1)
    chosen = rank < (present.sum(dim=1, keepdim=True) + 1) // 2
    half = F.pad(chosen & present, (0, 1)).gather(1, flat).view_as(slots)
    return half, labelled & ~half


def paste(mask: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """`above` where the mask (B, H, W) is True, else `below`; both (B, ..., H, W)."""
    return torch.where(mask if above.ndim == 3 else mask.unsqueeze(1), above, below)
