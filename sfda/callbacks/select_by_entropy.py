"""The checkpoint with the smallest mean entropy."""

from sfda.callbacks.selection import Selector


class SelectByEntropy(Selector):
    """Smallest mean entropy of the predictions on target validation images; no label is read.

    As Cal-SFDA selects its adapted model (arXiv 2308.03003). Entropy is also smallest where everything collapses into
    one class: ``class_coverage`` stands beside it in ``selection.json``.
    """

    score = "entropy"
    signals = ("entropy",)
