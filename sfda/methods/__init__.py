"""Adaptation methods: one file each, named like its config. A method of your own stands on one of these kinds."""

from sfda.methods.kinds.gathered import GatheredMethod
from sfda.methods.kinds.method import Method
from sfda.methods.kinds.online import OnlineMethod
from sfda.methods.kinds.post_hoc import PostHocCalibration
from sfda.methods.kinds.pseudo_labelled import PseudoLabelledMethod
from sfda.methods.kinds.taught import TaughtMethod
from sfda.methods.kinds.trained import TrainedMethod
from sfda.methods.kinds.value_net import ValueNetMethod

__all__ = [
    "GatheredMethod",
    "Method",
    "OnlineMethod",
    "PostHocCalibration",
    "PseudoLabelledMethod",
    "TaughtMethod",
    "TrainedMethod",
    "ValueNetMethod",
]
