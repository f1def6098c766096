"""Everything that a segmentation is scored by, from one pass over its probabilities."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from sfda.metrics.calibration import BINS, calibration_scores, merge_bins, reliability
from sfda.metrics.functional import FINE_BINS, score_sums
from sfda.metrics.label_free import LabelFreeMetrics


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union: (C, C), rows = labels → (C,).

    NaN for a class that occurs neither in the labels nor in the predictions, 0 where it is predicted but absent.
    """
    intersection = confusion.diagonal()
    return intersection / (confusion.sum(0) + confusion.sum(1) - intersection)


class SegmentationMetrics(LabelFreeMetrics):
    """Scores of all images that it has been fed, on all processes together.

    States are float64 sums, so the scores do not depend on how the images were spread over batches and processes.

    Args:
        class_names: Names of the C classes, in the order of the channels.
        with_labels: False for a data set whose labels do not exist or may not be read: label-free scores only.
        subsets: Name → classes over whose IoU a further mean is reported as ``miou<name>``, from the same predictions.
    """

    confusion: Tensor
    bins: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        with_labels: bool = True,
        subsets: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        num_classes = len(class_names)
        super().__init__(num_classes)
        self.class_names = tuple(class_names)
        self.with_labels = with_labels
        index = self.class_names.index
        self.subsets = {name: [index(member) for member in members] for name, members in (subsets or {}).items()}
        if with_labels:
            self._add_sums(
                confusion=(num_classes, num_classes),
                bins=(3, num_classes, FINE_BINS),
                **dict.fromkeys(("nll", "brier", "image_ece", "images"), ()),
            )

    def update(self, probabilities: Tensor, labels: Tensor | None = None, *, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            probabilities: (B, C, H, W), sums to 1 over C, at the labels' own resolution. Not logits.
            labels: (B, H, W), uint8 or int64, 255 = takes part in nothing; not looked at without `with_labels`.
            valid: (B, H, W) bool, False where a pixel is padding; None: all are real.
        """
        self._accumulate(score_sums(probabilities, labels if self.with_labels else None, valid))

    def compute(self) -> dict[str, Tensor]:
        """Scores by name, float64 scalars.

        Always those of `label_free_scores`. With labels also those of `calibration_scores`, and, as fractions,
        ``miou`` (mean over the classes that occur), ``miou<name>`` of the subsets, ``iou_<class>``, ``missing_classes``
        (how many the mean leaves out, their IoU being NaN) and ``pixel_accuracy``.
        """
        scores = super().compute()
        if not self.with_labels:
            return scores
        iou = iou_per_class(self.confusion)
        return {
            "miou": iou.nanmean(),
            **{f"miou{name}": iou[members].nanmean() for name, members in self.subsets.items()},
            "missing_classes": iou.isnan().double().sum(),
            "pixel_accuracy": self.confusion.trace() / self.confusion.sum(),
            **calibration_scores(self._sums()),
            **scores,
            **{f"iou_{name}": value for name, value in zip(self.class_names, iou, strict=True)},
        }

    def reliability(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixel count, mean confidence and accuracy of 15 equal-width bins, each (15,); called on all processes.

        Confidence and accuracy of an empty bin are NaN. `reliability_diagram` draws them.
        """
        with self.sync_context():
            return reliability(merge_bins(self.bins.sum(1), BINS))

    def confidence_bins(self) -> Tensor:
        """Pixel count, Σ confidence and Σ correct by fine confidence bin, (3, FINE_BINS); called on all processes."""
        with self.sync_context():
            return self.bins.sum(1)
