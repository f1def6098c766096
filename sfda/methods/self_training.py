"""Self-training on class-balanced pseudo-labels."""

import sys
from typing import Any

from torch import Tensor, nn

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import refuse_negative, refuse_outside
from sfda.losses.cross_entropy import cross_entropy
from sfda.methods.kinds.pseudo_labelled import PseudoLabelledMethod
from sfda.methods.kinds.target_statistics import target_statistics
from sfda.networks.batch_norm import mix_statistics, read_statistics
from sfda.pseudo_labels.labelling import label_by_class_balance
from sfda.pseudo_labels.store import PseudoLabelStore
from sfda.ranks import ALL_RANKS

FRACTION_PER_ROUND = 0.05


class SelfTraining(PseudoLabelledMethod):
    """Cross-entropy on the most confident predictions of every class.

    In the manner of CBST (Zou et al., "Unsupervised domain adaptation for semantic segmentation via class-balanced
    self-training", ECCV 2018), without its source images: the ablation of Cal-SFDA without calibration. First the BN
    statistics are re-estimated on target as in `AdaBN`; then a pixel is labelled if its confidence is among the top
    `class_fraction` of all target pixels predicted as its class, or the top `image_fraction` of its image.

    Thresholds, the realised fraction of every class and the coverage are in ``pseudo_labels/manifest.json``.

    Args:
        bn_alpha: Share α of the target in the BN statistics, (1 − α)·source + α·target; 0 leaves them as they are.
        class_fraction: Share of the pixels predicted as a class that are labelled, in round 0.
        image_fraction: Share of the pixels of an image that are labelled, in round 0.
        round: Number r of the round: both fractions grow by 0.05·r, the learning rate is divided by √2^r. A round
            beyond 0 starts from the checkpoint of the one before, its `source_checkpoint`.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: a fraction is not in [0, 1].
    """

    needs = Needs(target="images", view="weak")
    label_options: tuple[str, ...] = ("bn_alpha", "class_fraction", "image_fraction", "round")

    def __init__(
        self,
        bn_alpha: float = 1.0,
        class_fraction: float = 0.15,
        image_fraction: float = 0.10,
        round: int = 0,
        **trained: Any,
    ) -> None:
        super().__init__(**trained)
        refuse_outside(0, 1, bn_alpha=bn_alpha, class_fraction=class_fraction, image_fraction=image_fraction)
        refuse_negative(round=round)
        self.bn_alpha = bn_alpha
        self.class_fraction = min(1.0, class_fraction + FRACTION_PER_ROUND * round)
        self.image_fraction = min(1.0, image_fraction + FRACTION_PER_ROUND * round)
        self.round = round

    def lr_factor(self, step: int) -> float:
        """Smaller by √2 each round."""
        return super().lr_factor(step) / 2 ** (self.round / 2)

    def initialise_from_source(self) -> None:
        """The source model, its BN statistics mixed with those of the target."""
        super().initialise_from_source()
        self.re_estimate_statistics()

    def statistics_module(self) -> nn.Module:
        """Whose BN layers are re-estimated."""
        return self.network

    def run_statistics_module(self, images: Tensor) -> object:
        """A forward pass through all of `statistics_module`; images (B, 3, H, W)."""
        return self.network(images)

    def re_estimate_statistics(self) -> None:
        """BN statistics = (1 − α)·source + α·target."""
        if self.bn_alpha == 0:
            return
        module = self.statistics_module()
        target = target_statistics(self, module, self.run_statistics_module)
        mix_statistics(module, read_statistics(module), target, self.bn_alpha)

    def label_confidence(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities (B, C, H, W) of images (B, 3, H, W), and what scales the confidence of each image, (B,)."""
        return self.network(images).float().softmax(dim=1), None

    def make_labels(self, store: PseudoLabelStore) -> None:
        """One pass for thresholds and labels."""
        label_by_class_balance(
            store,
            self.datamodule.plain_batches("target", self.device, title="predicting for pseudo-labels"),
            self.label_confidence,
            num_classes=len(self.datamodule.classes),
            class_fraction=self.class_fraction,
            image_fraction=self.image_fraction,
            images=len(self.datamodule.training_sets["target"]),
            show_progress=self.show_progress,
        )

    def prepare_fit(self) -> None:
        """Initial weights and labels, and a line about them."""
        super().prepare_fit()
        assert self.pseudo_labels is not None
        report = self.pseudo_labels.report
        labelled = sum(share > 0 for share in report["labelled_share"])
        if self.trainer.is_global_zero:
            sys.stdout.write(
                f"pseudo-labels: {100 * report['coverage']:.0f} % of the pixels, {labelled} of "
                f"{len(report['labelled_share'])} classes; thresholds are in "
                f"{self.run_folder / 'pseudo_labels' / 'manifest.json'}\n"
            )

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``ce``."""
        target = batch["target"]
        logits = self.network(target["image"]).float()
        return {"ce": cross_entropy(logits, target["pseudo_label"], ALL_RANKS)}
