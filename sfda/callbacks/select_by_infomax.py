"""The checkpoint with the largest InfoMax."""

from sfda.callbacks.selection import Selector


class SelectByInfoMax(Selector):
    """Largest H(mean p) − mean H(p) over the scored classes of the target validation images; no label is read.

    Predictions are confident, and of many classes (Shi and Sha, ICML 2012; Liang et al., arXiv 2002.08546).
    """

    score = "infomax"
    mode_of_score = "max"
    signals = ("infomax",)
