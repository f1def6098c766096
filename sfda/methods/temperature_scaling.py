"""Temperature scaling: calibrated on the labelled validation images of the source."""

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.methods.kinds.post_hoc import PostHocCalibration


class TemperatureScaling(PostHocCalibration):
    """T by the NLL of labelled source images that the source model was not trained on.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017, arXiv 1706.04599, section 4.2). It needs the
    source, so it is not source-free; and the T of the source need not be that of the target.

    The fit passes over the source's validation images as over training images: at the size that the network sees, in
    full batches.
    """

    needs = Needs(source="labels", split="val", view="plain")

    def gather(self, batch: Batch) -> None:
        """Offer the labelled pixels."""
        source = batch["source"]
        self.add(self.uncalibrated_probabilities(source["image"]), source["label"])
