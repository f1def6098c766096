"""The contract of a method: what it reads, how it predicts, how it is validated.

Three kinds stand on it: a plain `Method` only predicts, a `TrainedMethod` follows the gradient of named losses, a
`GatheredMethod` looks at the images once and then changes the network without a gradient.
"""

import warnings
from abc import ABC
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from torchmetrics import Metric

from sfda.data.datamodule import DomainAdaptationDataModule
from sfda.data.datasets import DomainBatch
from sfda.data.label_spaces import ClassSet
from sfda.data.needs import Needs, refuse_words_of_before
from sfda.errors import UserError
from sfda.metrics.functional import group_probabilities
from sfda.metrics.scoring import Scores, Scoring
from sfda.metrics.segmentation import SegmentationMetrics
from sfda.networks.build import build_network
from sfda.networks.finite import refuse_nan
from sfda.networks.options import NetworkOptions
from sfda.networks.resampling import scale_images, scaled_size
from sfda.progress import Advance, PassDisplay, no_progress
from sfda.pseudo_labels.store import PseudoLabelStore
from sfda.runs.checkpoints import load_source_network

Views = Literal["single", "multi_scale"]
MULTI_SCALES = (0.75, 1.0, 1.25)


class Method(L.LightningModule, ABC):
    """A network, how it predicts, and how its predictions are scored.

    Class attributes:
        needs: What a fit reads; the DataModule opens exactly this.
        optimises: What a fit improves by itself, so that it says little about the model: ``entropy`` (confidence),
            ``infomax``, or ``views`` (agreement with itself); see `sfda.judging.verdict` and the selectors.
        pseudo_labels: Labels of the target training images that the method has made itself in `prepare_fit`; the
            training loader then hands them out under ``pseudo_label``.

    Args:
        network: Network string, see `sfda.networks.build.build_network`.
        network_options: What is known of the network beside its name; see `sfda.networks.options.NetworkOptions`.
        num_classes: Number of classes C that the network predicts; the command line links it to the data's `classes`.
        source_checkpoint: Checkpoint whose network this one starts from: initial weights. (``--ckpt_path`` is another
            thing: it resumes or evaluates a run of this same method.)
        views: How probabilities are predicted: from the image as it is, or averaged over the scales 0.75, 1 and 1.25,
            each with its mirror image (``multi_scale``).
    """

    needs: ClassVar[Needs] = Needs()
    optimises: ClassVar[tuple[str, ...]] = ()
    pseudo_labels: PseudoLabelStore | None = None
    input_scale: float = 1.0
    """Factor on the size of images at which the network sees them; see `sfda.methods.kinds.scaled`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_words_of_before(cls)

    def __init__(
        self,
        network: str,
        num_classes: int,
        network_options: NetworkOptions | None = None,
        source_checkpoint: str | None = None,
        views: Views = "single",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = build_network(network, num_classes, options=network_options)
        self.source_checkpoint = source_checkpoint
        self.views = views
        self._has_run_weights = False
        self.loaded_step = 0
        self.scoring = Scoring()
        self.results: dict[str, Scores] = {}

    def predict_probabilities(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Class probabilities of images: all evaluation, selection, prediction and export go through here.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            size: (height, width) of the result; default (H, W).

        Returns:
            (B, C, height, width) in at least float32, summing to 1 over C.
        """
        return self.view_probabilities(images, size or (images.shape[-2], images.shape[-1]))

    def initialise_from_source(self) -> None:
        """Fill the networks made in `__init__` from `source_checkpoint`; a resumed run overwrites them later."""
        if self.source_checkpoint is None:
            raise UserError(
                f"{type(self).__name__} starts from a source model: give its checkpoint with "
                "--model.init_args.source_checkpoint PATH"
            )
        self.start_from_size(load_source_network(self.network, self.source_checkpoint, self.hparams))

    def start_from_size(self, scale: float) -> None:
        """Warn where the source checkpoint's method showed its network images at `scale` times their size."""
        if scale != 1:
            warnings.warn(
                f"source_checkpoint {self.source_checkpoint} saw images at {scale:g} times their size, which "
                f"{type(self).__name__} does not do by itself: give larger or smaller ones, --data.init_args.size",
                stacklevel=1,
            )

    def adapt_online(self, images: Tensor) -> None:
        """Called after each target batch was predicted, in `sfda validate` only; here nothing happens.

        Online methods update themselves here. No labels are handed over, and the batch has already been scored.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
        """

    def make_metrics(self, classes: ClassSet, with_labels: bool) -> list[Metric]:
        """The metrics of a validation set; a method may add its own, which compute before any image too, as NaN.

        Args:
            classes: The classes that are scored.
            with_labels: Whether the labels of the set may be read.

        Returns:
            Metrics whose `update` takes probabilities (B, C, H, W) and labels (B, H, W), 255 = takes part in nothing,
            or None, and whose `compute` gives scores by name.
        """
        return [SegmentationMetrics(classes.names, with_labels=with_labels, subsets=classes.subsets)]

    def single_view_probabilities(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Softmax of the network's logits at `size`: (B, 3, H, W) → (B, C, *size)."""
        return self.network.resize(self.network(images).float(), size).softmax(dim=1)

    def plain_view_probabilities(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """The same for the images as they are, neither scaled nor mirrored, whatever other `views` there are."""
        return self.single_view_probabilities(images, size)

    def view_probabilities(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Probabilities by the option `views`: (B, 3, H, W) → (B, C, *size)."""
        if self.views == "single":
            return self.plain_view_probabilities(images, size)
        return self.multi_scale_probabilities(images, size)

    def multi_scale_probabilities(
        self, images: Tensor, size: tuple[int, int], scales: Sequence[float] = MULTI_SCALES
    ) -> Tensor:
        """Mean of the probabilities at several scales, each with its mirror image: (B, 3, H, W) → (B, C, *size)."""
        total = torch.zeros(())
        for scale in scales:
            scaled = scale_images(images, scale)
            predict = self.plain_view_probabilities if scale == 1 else self.single_view_probabilities
            total = total.to(images.device) + predict(scaled, size)
            total = total + self.single_view_probabilities(scaled.flip(-1), size).flip(-1)
        return total / (2 * len(scales))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) of images (B, 3, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    @property
    def datamodule(self) -> DomainAdaptationDataModule:
        """The DataModule at work."""
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]

    @classmethod
    def has_fit_with(cls, options: Mapping[str, Any]) -> bool:
        """Whether there is something to fit; otherwise the method is scored as it starts from the source model."""
        return cls.training_step is not L.LightningModule.training_step

    @property
    def has_fit(self) -> bool:
        """The same for the options that it has."""
        return self.has_fit_with(self.hparams)

    @property
    def has_read(self) -> Needs:
        """What all fits behind these weights have read, but for the training of the source model."""
        return self.needs

    @property
    def fit_is_complete(self) -> bool:
        """Whether a fit that has ended did what it is for, so that its weights are a result."""
        return self.trainer.global_step > 0

    @property
    def run_folder(self) -> Path:
        """Where this run writes its reports."""
        return Path(self.trainer.default_root_dir)

    def show_progress(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """Show a long pass outside of the Trainer's own loops, as the Trainer's progress bar does, on rank 0.

        Args:
            title: What is done, for example ``labelling``.
            total: How many there are of what is passed over, on this process.

        Returns:
            A context whose value is told how many more are done.
        """
        display = self.trainer.progress_bar_callback
        return display.show_pass(title, total) if isinstance(display, PassDisplay) else no_progress(title, total)

    def setup(self, stage: str) -> None:
        """What is known of the network, weights from the source model, and the metrics of every validation set."""
        self.introduce_network()
        if stage == "fit":
            self.prepare_fit()
        with_labels = {str(name): samples.with_labels for name, samples in self.datamodule.validation_sets.items()}
        self.scoring.open(self.datamodule.score_classes, with_labels, self.make_metrics)

    def introduce_network(self) -> None:
        """Say what a probe has found out, and pass images of the run's sizes before any is read.

        Raises:
            UserError: the network fails on them.
        """
        if not self.network.description:
            return
        if self.trainer.is_global_zero:
            Console().print(Text(self.network.description), soft_wrap=True)
        scales = MULTI_SCALES if self.views == "multi_scale" else (1.0,)
        for size in filter(None, {self.datamodule.size, self.datamodule.crop}):
            for scale in scales:
                self.network.try_size(scaled_size(size, scale))

    def prepare_fit(self) -> None:
        """What a fit needs before the loaders are built: here, initial weights, unless a resumed run has its own."""
        if self.trainer.ckpt_path is None:
            self.initialise_from_source()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember that the weights are those of a run, and after how many optimizer steps."""
        self._has_run_weights = True
        self.loaded_step = int(checkpoint.get("global_step", 0))

    def on_validation_start(self) -> None:
        """`validate` needs the weights of a fit; a method without one starts from the source model.

        Raises:
            UserError: there are no weights, or those of the source model would be taken for those of a fit.
        """
        self.scoring.reset()
        if self.trainer.state.fn != "validate":
            return
        limit = self.trainer.limit_val_batches
        if isinstance(limit, int) or limit < 1:  # the integer 1 is one batch, the float 1.0 all of them
            warnings.warn(f"only a part of the images is scored: --trainer.limit_val_batches {limit}", stacklevel=1)
        if self._has_run_weights:
            return
        if self.has_fit:
            raise UserError(
                f"there is nothing to validate: {type(self).__name__} has to be fitted first. Give --run (a run folder)"
                " or --ckpt_path (a checkpoint of this method); SourceOnly scores a source model as it is"
            )
        self.initialise_from_source()

    @property
    def advice_against_nan(self) -> str:
        """What to do where the network predicts no numbers."""
        if self.trainer.state.fn == "fit" and self.trainer.global_step > 0:
            return f"lower --model.init_args.lr (it has taken {self.trainer.global_step} steps)"
        if (path := self.trainer.ckpt_path or self.source_checkpoint) is not None:
            return f"check the source checkpoint {path}"
        return f"check the network {self.hparams['network']}"

    def score_probabilities(self, probabilities: Tensor) -> Tensor:
        """Probabilities over the scored classes: (B, C, H, W) → (B, C_scored, H, W)."""
        groups = self.datamodule.score_groups
        if groups is None:
            return probabilities
        return group_probabilities(probabilities, torch.from_numpy(groups).long(), len(self.datamodule.score_classes))

    def domain_of(self, dataloader_idx: int) -> str:
        """The name of the validation set of a loader."""
        return list(self.datamodule.validation_sets)[dataloader_idx]

    def validation_step(self, batch: DomainBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """Score a batch; the probabilities go to whoever draws them. None for a batch of bad pairs alone.

        Raises:
            UserError: a probability is NaN, which would count as the first class.
        """
        if not batch["name"]:
            return None
        domain = self.domain_of(dataloader_idx)
        label = batch.get("label")
        size = None if label is None else (label.shape[-2], label.shape[-1])
        probabilities = self.score_probabilities(self.predict_probabilities(batch["image"], size))
        refuse_nan(probabilities, batch["name"], self.advice_against_nan)
        self.scoring.update(domain, probabilities, label)
        if domain == "target" and self.trainer.state.fn == "validate":
            self.adapt_online(batch["image"])
        return probabilities

    def on_validation_epoch_end(self) -> None:
        """Log everything under ``<domain>/<metric>``, equal on all ranks."""
        self.results = self.scoring.compute()
        for domain, scores in self.results.items():
            for name, value in scores.items():
                if value == value:  # a class that never occurs has no IoU, and a log no NaN
                    self.log(f"{domain}/{name}", value, sync_dist=True)
