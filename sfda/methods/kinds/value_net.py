"""Methods with a value net: what it estimates of an image, and how well."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from sfda.data.datasets import DomainBatch
from sfda.data.label_spaces import IGNORE, ClassSet
from sfda.errors import UserError
from sfda.files import write_figure, write_json
from sfda.losses.calibration import Absent, image_ece
from sfda.methods.kinds.trained import TrainedMethod
from sfda.metrics.ece_estimate import EceEstimateQuality, estimate_scatter
from sfda.networks.value_net import ValueNet
from sfda.ranks import gather_over_ranks
from sfda.runs.checkpoints import read_checkpoint

REPORT_BINS = 10
"""Bins of the true ECE that estimates are compared with."""

PREFIX = "value_net_"
"""Begins the names of the scores that say how good the estimates are."""


class ValueNetScores(EceEstimateQuality):
    """Estimated against true calibration errors, as a metric of probabilities and labels.

    Args:
        latest_estimates: Gives the estimates (B,) of the images that were predicted last.
        absent: See `ValueNetMethod`.
        with_labels: False where there is no truth.
    """

    def __init__(self, latest_estimates: Callable[[], Tensor], absent: Absent, *, with_labels: bool) -> None:
        super().__init__(with_labels=with_labels)
        self._latest_estimates = latest_estimates
        self._absent = absent

    def update(self, probabilities: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch: probabilities (B, C, H, W) and labels (B, H, W) of the images that were predicted last."""
        super().update(self._latest_estimates(), _true_ece(probabilities, labels, self._absent))

    def compute(self) -> dict[str, Tensor]:
        """``estimated_ece`` and, with labels, ``value_net_`` `pearson`, `spearman`, `mae` and `true_ece`."""
        scores = super().compute()
        return {name if name == "estimated_ece" else f"{PREFIX}{name}": value for name, value in scores.items()}


class ValueNetMethod(TrainedMethod):
    """A trained method that carries a value net, and reports how good its estimates are.

    Every validation logs ``<domain>/estimated_ece``, the mean estimate over the images, and, where labels may be
    read, ``<domain>/value_net_`` ``pearson``, ``spearman``, ``mae`` and ``true_ece``: against the class-averaged ECE
    of each image (10 bins, the scored classes, the labels' size, the method's own probabilities). `sfda validate`
    also writes ``value_net.json``, every image's estimate and truth, and ``value_net_<domain>.png`` into the run
    folder. A method may do without (`needs_value_net`); then there is none, and nothing of it is reported.

    Args:
        absent: What a class absent from an image counts in the ECE that is learnt and reported as the true one: left
            out of the average (``skip``), or 0 (``zero``, the target of the authors' code, which is smaller).
        **trained: Options of `TrainedMethod`.
    """

    def __init__(self, absent: Literal["skip", "zero"] = "skip", **trained: Any) -> None:
        super().__init__(**trained)
        self.absent: Absent = absent
        self.value_net = ValueNet(self.network.feature_channels()) if self.needs_value_net() else None
        self._names: dict[str, list[str]] = {}
        self._estimates = torch.empty(0)

    def needs_value_net(self) -> bool:
        """Whether there is a value net with these `hparams`; asked when the network has been built."""
        return True

    def probabilities_and_ece(self, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Class probabilities (B, C, *size) of images (B, 3, H, W) and their estimated ECE (B,), in one pass."""
        assert self.value_net is not None
        logits, features = self.network.forward_features(images)
        estimates: Tensor = self.value_net(features)
        return self.network.resize(logits.float(), size).softmax(dim=1), estimates

    def plain_view_probabilities(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """See `Method`; the estimates of the images are kept, at the cost of no pass of their own."""
        if self.value_net is None:
            return super().plain_view_probabilities(images, size)
        probabilities, self._estimates = self.probabilities_and_ece(images, size)
        return probabilities

    def _latest_estimates(self) -> Tensor:
        return self._estimates

    def make_metrics(self, classes: ClassSet, with_labels: bool) -> list[Metric]:
        """The quality of the estimates too."""
        metrics = super().make_metrics(classes, with_labels)
        if self.value_net is None:
            return metrics
        return [*metrics, ValueNetScores(self._latest_estimates, self.absent, with_labels=with_labels)]

    @override
    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._names = {name: [] for name in self.datamodule.validation_sets}

    @override
    def validation_step(self, batch: DomainBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        probabilities = super().validation_step(batch, batch_idx, dataloader_idx)
        self._names[self.domain_of(dataloader_idx)] += batch["name"]
        return probabilities

    def on_validation_epoch_end(self) -> None:
        """After `sfda validate` report the quality, which is among the other scores."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "validate" and self.value_net is not None:
            self._report()

    def _report(self) -> None:
        report = {}
        for domain, quality in self.scoring.find(ValueNetScores).items():
            scores = {
                name.removeprefix(PREFIX): value
                for name, value in self.results[domain].items()
                if name == "estimated_ece" or name.startswith(PREFIX)
            }
            estimates, truths = quality.pairs()
            rows = zip(gather_over_ranks(self._names[domain]), estimates.tolist(), truths.tolist(), strict=True)
            images = [
                {"name": name, "estimate": _or_none(estimate), "truth": _or_none(truth)}
                for name, estimate, truth in sorted(rows)
            ]
            report[domain] = {**{name: _or_none(value) for name, value in scores.items()}, "images": images}
            if quality.with_labels and self.trainer.is_global_zero:
                path = self.run_folder / f"value_net_{domain}.png"
                write_figure(path, estimate_scatter(estimates, truths, scores), dpi=110)
        if self.trainer.is_global_zero:
            write_json(self.run_folder / "value_net.json", report)


def load_value_net(value_net: nn.Module, path: str, absent: Absent = "skip") -> None:
    """Load the value net of a checkpoint of `ValueNetTraining` into `value_net`.

    Raises:
        UserError: the checkpoint cannot be read, or holds none, or one for another network or another `absent`.
    """
    prefix = "value_net."
    checkpoint = read_checkpoint(path)
    stored = checkpoint["state_dict"]
    state = {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}
    if not state:
        raise UserError(
            f"source_checkpoint {path} holds no value net: train it with `sfda fit <benchmark>/value_net_training` and "
            "give that run's selected.ckpt, which holds the source model's network too"
        )
    try:
        value_net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"the value net of source_checkpoint {path} was trained for another network: {error}"
        ) from error
    learnt = checkpoint.get("hyper_parameters", {}).get("absent", "skip")
    if learnt != absent:
        raise UserError(
            f"the value net of source_checkpoint {path} has learnt the ECE with absent: {learnt}, not {absent}: give "
            f"--model.init_args.absent {learnt}"
        )


def has_labels(labels: Tensor) -> Tensor:
    """Which of labels (B, H, W) have a labelled pixel: (B,) bool."""
    return (labels != IGNORE).flatten(1).any(1)


def _true_ece(probabilities: Tensor, labels: Tensor | None, absent: Absent) -> Tensor | None:
    """The class-averaged ECE of every image, (B,), NaN without a labelled pixel; None without labels."""
    if labels is None:
        return None
    truths = image_ece(probabilities, labels, bins=REPORT_BINS, absent=absent)
    return truths.masked_fill(~has_labels(labels), torch.nan)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
