"""The mean teacher without source: mixes among target images."""

from sfda.data.needs import Needs
from sfda.methods.kinds.taught import TargetMix
from sfda.methods.mean_teacher import MeanTeacher


class MeanTeacherSourceFree(TargetMix, MeanTeacher):
    """`MeanTeacher` from a source model alone, a variant of this project.

    There is no loss on labelled pixels: the mixes of target images are all that the student sees.
    """

    needs = Needs(target="images", view="weak_and_strong")
