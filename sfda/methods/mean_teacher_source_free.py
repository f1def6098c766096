"""The mean teacher without source: mixes among target images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.methods.mean_teacher import Donors, MeanTeacher, Mix, TaughtMethod

if TYPE_CHECKING:
    from sfda.data.datasets import Batch


class TargetMix(TaughtMethod):
    """A `TaughtMethod` without source images: what is pasted comes from another target image of the batch.

    The teacher's classes of that image are halved, and its labels go with them, with their weight.
    """

    def donors(self, batch: Batch, classes: Tensor, share: Tensor) -> Donors:
        """The next target image of the batch, with the teacher's classes; a batch of one is mixed with itself."""
        target = batch["target"]
        return Donors(target["strong"].roll(-1, 0), classes.where(target["valid"], IGNORE).roll(-1, 0), share)

    def donor_targets(self, mix: Mix, probabilities: Tensor) -> Tensor:
        """The same labels as where the donor is a target image."""
        return probabilities.roll(-1, 0)


class MeanTeacherSourceFree(TargetMix, MeanTeacher):
    """`MeanTeacher` from a source model alone, a variant of this project.

    There is no loss on labelled pixels: the mixes of target images are all that the student sees.
    """

    needs = Needs(target="images", view="weak_and_strong")
