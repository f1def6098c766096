"""The checkpoint whose classes' shares have drifted least."""

from sfda.callbacks.selection import Selector


class SelectByClassDrift(Selector):
    """Smallest total variation between the classes' shares and those of the second judge, in [0, 1].

    `sfda.callbacks.collapse_guard.CollapseGuard` logs it, on the few target validation images that it looks at.
    """

    score = "class_drift"
