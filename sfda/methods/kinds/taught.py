"""Methods with a student on class mixes, and a teacher, its moving average, that labels the target."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.label_spaces import IGNORE
from sfda.errors import UserError, refuse_outside
from sfda.losses.class_mix import class_halves, paste
from sfda.losses.cross_entropy import cross_entropy
from sfda.losses.mean import mean_over_pixels
from sfda.losses.soft_cross_entropy import one_hot, soft_cross_entropy
from sfda.methods.kinds.trained import TrainedMethod
from sfda.metrics.functional import at_least_float32, top_label
from sfda.networks.batch_norm import average_running_statistics
from sfda.networks.ema import update_average
from sfda.networks.frozen import Frozen
from sfda.ranks import ALL_RANKS


class Donors(NamedTuple):
    """The images that are cut up, one for each target image."""

    images: Tensor
    """(B, 3, H, W), strong views."""
    classes: Tensor
    """(B, H, W) what decides which pixels belong together; 255 is never pasted."""
    weight: Tensor
    """Weight of a pasted pixel, a scalar."""


class Mix(NamedTuple):
    """Half of each donor's classes on a target image."""

    images: Tensor
    """(B, 3, H, W)."""
    pasted: Tensor
    """(B, H, W) bool: pixels of the donor."""
    rest: Tensor
    """(B, H, W) bool: pixels of the donor's other classes."""
    donors: Donors
    weight: Tensor
    """(B, H, W) weight of every pixel's label."""
    valid: Tensor
    """(B, H, W) bool, False where a pixel is padding."""


class TaughtMethod(TrainedMethod):
    """Student, teacher and ClassMix, which `MeanTeacher` and `sfda.methods.da_cal.DACal` have in common.

    The student predicts; the teacher is its exponential moving average, in eval mode, with the student's buffers. The
    teacher labels the weak views of the target images. The student sees labelled source images and, in the same pass
    (BN statistics are those of both and move once a step), mixes of strong views: half of the classes of a source
    image, drawn again at every step, pasted onto a target image. The loss of a mix is the mean over its real pixels;
    pasted pixels have weight 1, the teacher's labels the share of the target pixels, of all processes' batches, that
    the teacher is sure of.

    A checkpoint holds the teacher beside the student; nothing that predicts uses it.

    Args:
        teacher_momentum: Momentum of the moving average.
        threshold: Confidence from which on the teacher counts as sure of a pixel.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range.
    """

    optimises = ("entropy", "views")

    def __init__(self, teacher_momentum: float = 0.999, threshold: float = 0.968, **trained: Any) -> None:
        super().__init__(**trained)
        refuse_outside(0, 1, teacher_momentum=teacher_momentum, threshold=threshold)
        self.teacher_momentum = teacher_momentum
        self.threshold = threshold
        self.teacher = Frozen(copy.deepcopy(self.network))

    def initialise_from_source(self) -> None:
        """Student and teacher start from the source model."""
        super().initialise_from_source()
        self.teacher.module.load_state_dict(self.network.state_dict())

    def after_optimizer_step(self) -> None:
        """The teacher follows."""
        update_average(self.teacher.module, self.network, self.teacher_momentum)

    def make_ranks_equal(self) -> None:
        """The teacher has BN layers too."""
        super().make_ranks_equal()
        average_running_statistics(self.teacher)

    def mix(self, batch: Batch, probabilities: Tensor) -> Mix:
        """Mixes of a batch, from the teacher's probabilities (B, C, H, W) of the target images."""
        target = batch["target"]
        confidence, classes = top_label(probabilities)
        sure = (confidence >= self.threshold) & target["valid"]
        share = ALL_RANKS.mean(mean_over_pixels(sure.to(probabilities.dtype), target["valid"], ALL_RANKS))
        donors = self.donors(batch, classes, share)
        pasted, rest = class_halves(donors.classes, probabilities.shape[1])
        return Mix(
            images=paste(pasted, donors.images, target["strong"]),
            pasted=pasted,
            rest=rest,
            donors=donors,
            weight=torch.where(pasted, donors.weight, share),
            valid=pasted | target["valid"],
        )

    def donors(self, batch: Batch, classes: Tensor, share: Tensor) -> Donors:
        """The source images and their labels; from the start again where the batch has fewer than target images.

        Args:
            batch: The training batch.
            classes: (B, H, W) the teacher's classes of the target images.
            share: Weight of the teacher's labels.

        Raises:
            UserError: source and target images differ in size.
        """
        source, target = batch["source"], batch["target"]
        sizes = [tuple(part["strong"].shape[-2:]) for part in (source, target)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"source {sizes[0]} and target {sizes[1]} images differ in size, and parts of one are pasted onto the "
                "other: give them one size with --data.init_args.crop '[H, W]' or --data.init_args.size '[H, W]'"
            )
        chosen = torch.arange(len(target["strong"]), device=classes.device) % len(source["strong"])
        return Donors(source["strong"][chosen], source["label"][chosen], torch.ones_like(share))

    def donor_targets(self, mix: Mix, probabilities: Tensor) -> Tensor:
        """Labels of the donors' pixels, (B, C, H, W), where the target images have `probabilities`."""
        return one_hot(mix.donors.classes, probabilities.shape[1], probabilities.dtype)

    def mixed_targets(self, mix: Mix, probabilities: Tensor) -> Tensor:
        """Labels of the mixes, (B, C, H, W), where the target images have `probabilities` (B, C, H, W)."""
        return paste(mix.pasted, self.donor_targets(mix, probabilities), probabilities)

    def student_images(self, batch: Batch, mix: Mix) -> Tensor:
        """All that the student sees: the source images, where they are read, then the mixes."""
        return torch.cat([batch["source"]["image"], mix.images]) if "source" in batch else mix.images

    def student_losses(self, logits: Tensor, batch: Batch, mix: Mix, probabilities: Tensor) -> dict[str, Tensor]:
        """``mix``, and ``ce`` of the source images where they are read.

        Args:
            logits: Of `student_images`.
            batch: The training batch.
            mix: Its mixes.
            probabilities: (B, C, H, W) labels of the target images.
        """
        logits = at_least_float32(logits)
        images = len(logits) - len(mix.images)
        targets = self.mixed_targets(mix, probabilities)
        losses = {"mix": soft_cross_entropy(logits[images:], targets, mix.weight, mix.valid)}
        if images:
            losses["ce"] = cross_entropy(logits[:images], batch["source"]["label"])
        return losses


class TargetMix(TaughtMethod):
    """A `TaughtMethod` without source images: what is pasted comes from another target image of the batch.

    The teacher's classes of that image are halved, and its labels go with them, with their weight.
    """

    def donors(self, batch: Batch, classes: Tensor, share: Tensor) -> Donors:
        """The next target image of the batch, with the teacher's classes; a batch of one is mixed with itself."""
        target = batch["target"]
        return Donors(target["strong"].roll(-1, 0), classes.where(target["valid"], IGNORE).roll(-1, 0), share)

    def donor_targets(self, mix: Mix, probabilities: Tensor) -> Tensor:
        """The same labels as where the donor is a target image."""
        return probabilities.roll(-1, 0)
