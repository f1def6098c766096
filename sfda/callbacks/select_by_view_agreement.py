"""The checkpoint that agrees most with itself between views."""

from sfda.callbacks.selection import Selector
from sfda.callbacks.view_agreement import ViewAgreement


class SelectByViewAgreement(ViewAgreement, Selector):
    """Largest share of pixels that keep their class in a mirror image, at two scales and in other colours.

    It ranks models that follow no gradient; what trains on its own predictions agrees with itself more, the nearer it
    is to collapse.
    """

    mode_of_score = "max"
    signals = ("views",)
    passes = 5
