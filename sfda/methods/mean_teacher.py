"""A mean teacher on class mixes of source and target."""

from typing import Any, Literal

from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.losses.soft_cross_entropy import one_hot
from sfda.methods.kinds.taught import TaughtMethod
from sfda.metrics.functional import at_least_float32, top_label


class MeanTeacher(TaughtMethod):
    """Unsupervised domain adaptation with a mean teacher and cross-domain ClassMix, in the manner of DACS.

    DACS: Tranheden et al., arXiv 2007.08702; implemented from the published description, and the base of DA-Cal
    (arXiv 2602.20860), whose values the defaults are. Differences from DACS: the teacher runs in eval mode, the strong
    views are drawn for source and target image apart, and source images and mixes pass through the student together.

    Args:
        labels: The teacher's most probable classes (``hard``) or its probabilities (``soft``).
        **taught: Options of `TaughtMethod`.
    """

    needs = Needs(source="labels", target="images", view="weak_and_strong")

    def __init__(self, labels: Literal["hard", "soft"] = "hard", **taught: Any) -> None:
        super().__init__(**taught)
        self.labels = labels

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``mix``, and ``ce`` of the source images where they are read."""
        probabilities = at_least_float32(self.teacher(batch["target"]["image"])).softmax(dim=1)
        mix = self.mix(batch, probabilities)
        if self.labels == "hard":
            probabilities = one_hot(top_label(probabilities)[1], probabilities.shape[1], probabilities.dtype)
        return self.student_losses(self.network(self.student_images(batch, mix)), batch, mix, probabilities)
