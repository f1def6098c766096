"""A score that sfda does not have."""

from torchmetrics.classification import MulticlassCohenKappa

from sfda.callbacks.extra_scores import ExtraScores


class Kappa(ExtraScores):
    """Cohen's kappa of the predicted classes, where there are labels."""

    def make_metric(self, classes, with_labels):
        return MulticlassCohenKappa(len(classes), ignore_index=255) if with_labels else None
