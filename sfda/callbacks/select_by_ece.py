"""The checkpoint with the smallest calibration error."""

from sfda.callbacks.selection import Selector


class SelectByECE(Selector):
    """Smallest ECE on labelled validation images: for the source stage, where labels are at hand.

    The ECE of the whole validation set (15 bins, top label), as Cal-SFDA selects its source model (arXiv 2308.03003,
    section 3.3.2). `start_after` is ours: a barely trained network can be calibrated and useless.
    """

    score = "ece"

    def __init__(self, start_after: float = 0.5, keep: int = 1) -> None:
        super().__init__(start_after, keep)
