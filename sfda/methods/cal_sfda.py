"""Cal-SFDA's third stage: adaptation to the target, guided by the estimated calibration error."""

import sys
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import UserError, refuse_negative
from sfda.losses.entropy import normalised_entropy
from sfda.losses.negative_learning import complementary_rank, negative_learning
from sfda.losses.symmetric_cross_entropy import symmetric_cross_entropy
from sfda.methods.kinds.value_net import ValueNetMethod, load_value_net
from sfda.methods.self_training import SelfTraining
from sfda.networks.normalisation import affine_parameters
from sfda.pseudo_labels.thresholds import class_weights, effective_number
from sfda.ranks import ALL_RANKS


class CalSFDA(ValueNetMethod, SelfTraining):
    """Self-training whose confidences are scaled by the calibration error that a value net expects of each image.

    Stage 3 of Cal-SFDA (Wang et al., arXiv 2308.03003, section 3.4), implemented from the published description.
    The value net of stage 2 gives ê of every target image; the confidence that thresholds and labels go by is
    s = (1 − ê)·confidence. In the first epochs only scale and shift of the normalisation layers (in the paper
    BatchNorm) train, then the classifier, with the backbone frozen. The loss is symmetric cross-entropy on the labelled
    pixels, negative learning and normalised entropy on all.

    `source_checkpoint` is the checkpoint of `ValueNetTraining`, which holds both networks. The mean ê over the
    validation images is logged as ``target/estimated_ece`` beside their entropy; its quality, where there are labels,
    is reported by `sfda validate` (see `ValueNetMethod`). With ``scaling: none`` there is no value net, and any source
    model will do.

    Args:
        scaling: ``ece`` scales confidences by 1 − ê; ``none`` leaves them as they are (the ablation).
        warmup_epochs: Epochs in which only scale and shift of the normalisation layers train.
        train_backbone: Train the backbone too after the warm-up.
        ce_weight: Weight of the class-weighted cross-entropy in the symmetric one.
        rce_weight: Weight of the reverse cross-entropy in the symmetric one.
        nl_weight: Weight of negative learning.
        eta: Weight η of the normalised entropy. No published config names it; the default is ours.
        official_order: Re-estimate the BN statistics after labelling, as the official schedule does, not before.
        **self_training: Options of `ValueNetMethod` (`absent` must be that of the value net) and of `SelfTraining`.

    Raises:
        UserError: an option is out of its range, or there is nothing to train in the warm-up or after it.
    """

    needs = Needs(target="images", view="weak")
    optimises = ("entropy", "infomax")
    label_options: tuple[str, ...] = (*SelfTraining.label_options, "scaling", "official_order")

    def __init__(
        self,
        scaling: Literal["ece", "none"] = "ece",
        warmup_epochs: int = 1,
        train_backbone: bool = False,
        ce_weight: float = 0.1,
        rce_weight: float = 1.0,
        nl_weight: float = 1.0,
        eta: float = 1.0,
        official_order: bool = False,
        **self_training: Any,
    ) -> None:
        super().__init__(**self_training)
        refuse_negative(warmup_epochs=warmup_epochs, nl_weight=nl_weight, eta=eta)
        refuse_negative(ce_weight=ce_weight, rce_weight=rce_weight)
        if warmup_epochs and next(affine_parameters(self.network), None) is None:
            raise UserError(
                f"the warm-up trains scale and shift of normalisation layers, and {self_training['network']} has none: "
                "give --model.init_args.warmup_epochs 0"
            )
        if not train_backbone and next(self.network.parts()["classifier"].parameters(), None) is None:
            raise UserError(
                f"the classifier trains after the warm-up, and no part of {self_training['network']} was found to be "
                "one: give --model.init_args.train_backbone true"
            )
        self.scaling = scaling
        self.warmup_epochs = warmup_epochs
        self.train_backbone = train_backbone
        self.ce_weight = ce_weight
        self.rce_weight = rce_weight
        self.nl_weight = nl_weight
        self.eta = eta
        self.official_order = official_order
        self._class_weights = torch.ones(0)

    def needs_value_net(self) -> bool:
        """Only where it scales confidences."""
        return bool(self.hparams.get("scaling") != "none")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run without scaling has no use for the value net that sfda 0.1 kept in its checkpoints."""
        super().on_load_checkpoint(checkpoint)
        if self.value_net is None:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: value for k, value in state.items() if not k.startswith("value_net.")}

    def initialise_from_source(self) -> None:
        """Both networks, with the target's BN statistics unless these come later."""
        if self.source_checkpoint is not None and self.value_net is not None:
            load_value_net(self.value_net, self.source_checkpoint, self.absent)
        super().initialise_from_source()

    def statistics_module(self) -> nn.Module:
        """The value net sees shifted features too."""
        return self.network if self.value_net is None else nn.ModuleList([self.network, self.value_net])

    def run_statistics_module(self, images: Tensor) -> object:
        """Both networks, one after the other."""
        if self.value_net is None:
            return self.network(images)
        return self.value_net(self.network.forward_features(images)[1])

    def label_confidence(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities (B, C, H, W), and 1 − ê (B,)."""
        if self.value_net is None:
            return super().label_confidence(images)
        logits, features = self.network.forward_features(images)
        return logits.float().softmax(dim=1), 1 - self.value_net(features)

    def re_estimate_statistics(self) -> None:
        """Now, or, in the official order, after the labelling."""
        if not self.official_order:
            super().re_estimate_statistics()

    def prepare_fit(self) -> None:
        """Weights, labels, class weights."""
        super().prepare_fit()
        assert self.pseudo_labels is not None
        if self.official_order and self.trainer.ckpt_path is None:
            super().re_estimate_statistics()
        thresholds = torch.tensor(self.pseudo_labels.report["unscaled_thresholds"])
        self._class_weights = class_weights(thresholds).to(self.device, torch.float32)
        if self.trainer.is_global_zero:
            sys.stdout.write(f"class weights: {float(effective_number(self._class_weights)):.1f} effective classes\n")
        epochs = self.trainer.max_epochs or 0
        if 0 < epochs <= self.warmup_epochs and self.trainer.is_global_zero:
            warnings.warn(
                f"{type(self).__name__}: all {epochs} epochs are warm-up, and the classifier trains in none: raise "
                "--trainer.max_epochs, or lower --model.init_args.warmup_epochs",
                stacklevel=1,
            )

    def on_train_start(self) -> None:
        """Log what the class weights amount to."""
        super().on_train_start()
        for logger in self.loggers:
            logger.log_metrics({"train/effective_classes": float(effective_number(self._class_weights))}, step=0)

    @property
    def in_warmup(self) -> bool:
        """Whether only scale and shift of the normalisation layers train."""
        return self.current_epoch < self.warmup_epochs

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """The union of what the warm-up and the rest train: it must not change during a run."""
        if self.train_backbone:
            return super().trainable_parameters()
        parts = self.network.parts()
        return [
            {"name": "normalisation", "params": list(affine_parameters(parts["backbone"]))},
            {"name": "classifier", "params": list(parts["classifier"].parameters())},
        ]

    def paused_parameters(self) -> Iterable[nn.Parameter]:
        """In the warm-up all but scales and shifts, then the backbone."""
        if self.in_warmup:
            trained = {id(parameter) for parameter in affine_parameters(self.network)}
            return [parameter for parameter in self.network.parameters() if id(parameter) not in trained]
        return [] if self.train_backbone else list(self.network.parts()["backbone"].parameters())

    def set_modes(self) -> None:
        """The value net never trains; a frozen backbone keeps its statistics."""
        if self.value_net is not None:
            self.value_net.eval()
        if not self.in_warmup and not self.train_backbone:
            self.network.parts()["backbone"].eval()

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``sce``, ``nl`` and ``entropy``."""
        target = batch["target"]
        logits = self.network(target["image"]).float()
        rank = complementary_rank(logits.shape[1], self.shared_draws())
        return {
            "sce": symmetric_cross_entropy(
                logits,
                target["pseudo_label"],
                self._class_weights,
                self.ce_weight,
                self.rce_weight,
                ranks=ALL_RANKS,
            ),
            "nl": self.nl_weight * negative_learning(logits, rank, target["valid"], ALL_RANKS),
            "entropy": self.eta * normalised_entropy(logits, target["valid"], ALL_RANKS),
        }
