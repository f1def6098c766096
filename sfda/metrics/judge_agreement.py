"""How far a model's classes lie from those of a frozen second judge."""

import torch
from torch import Tensor
from torchmetrics import Metric


class JudgeAgreement(Metric):
    """``judge_agreement``, the share of pixels with the judge's class, and ``class_drift``; NaN before any pixel.

    ``class_drift`` is the total variation between the classes' shares of the pixels, in [0, 1]. C is `num_classes`.
    """

    full_state_update = False
    same: Tensor
    ours: Tensor
    theirs: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name, shape in {"same": (), "ours": (num_classes,), "theirs": (num_classes,)}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, classes: Tensor, judged: Tensor) -> None:
        """Add pixels: the classes of model and judge, integers of one shape."""
        self.same = self.same + (classes == judged).sum()
        self.ours = self.ours + torch.bincount(classes.flatten().long(), minlength=len(self.ours))
        self.theirs = self.theirs + torch.bincount(judged.flatten().long(), minlength=len(self.theirs))

    def compute(self) -> dict[str, Tensor]:
        """Both scores by name."""
        pixels = self.ours.sum()
        return {
            "judge_agreement": self.same / pixels,
            "class_drift": (self.ours - self.theirs).abs().sum() / (2 * pixels),
        }
