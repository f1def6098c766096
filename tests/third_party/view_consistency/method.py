"""A method: what the model is sure of in an image, it should see in a disturbed image too."""

import torch

from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.losses.cross_entropy import cross_entropy
from sfda.methods import TrainedMethod


class ViewConsistency(TrainedMethod):
    """Confident predictions for the weak view are the labels of the strong one.

    Args:
        threshold: Confidence from which a pixel is used.
        **trained: Options of `TrainedMethod`.
    """

    needs = Needs(target="images", view="weak_and_strong")

    def __init__(self, threshold: float = 0.9, **trained) -> None:
        super().__init__(**trained)
        self.threshold = threshold

    def compute_losses(self, batch):
        target = batch["target"]
        with torch.no_grad():
            confidence, label = self.network(target["image"]).softmax(dim=1).max(dim=1)
        label[~target["valid"] | (confidence < self.threshold)] = IGNORE
        return {"consistency": cross_entropy(self.network(target["strong"]), label)}
