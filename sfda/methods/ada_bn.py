"""Batch normalisation with the target's statistics."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import UserError, refuse_outside
from sfda.files import write_figure, write_json
from sfda.methods.kinds.gathered import GatheredMethod
from sfda.methods.kinds.online import OnlineMethod
from sfda.metrics.functional import top_label
from sfda.metrics.label_free import LabelFreeMetrics
from sfda.metrics.view_agreement import ranks, view_agreement
from sfda.networks.batch_norm import (
    BatchStatistics,
    LayerShift,
    Statistics,
    batch_norm_layers,
    input_layers,
    keep_lone_values,
    layer_shift,
    mix_statistics,
    read_statistics,
)
from sfda.networks.normalisation import normalisation_layers
from sfda.progress import Advance

ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
FEW_LAYERS = 3


class AdaBN(OnlineMethod, GatheredMethod):
    """BN statistics = (1 − α) · source + α · target; no weight is changed.

    α = 1 is the classic method (Li et al., "Revisiting batch normalization for practical domain adaptation",
    arXiv 1603.04779); small α are for targets that full replacement hurts. Target statistics are gathered with the BN
    layers in train mode, so that each layer sees inputs that the layers before it have already normalised by batch
    statistics, and are pooled over batches and ranks.

    ``alpha: auto`` needs no label: each of eight α is scored on a few target training images by the agreement between
    views and by InfoMax over the scored classes; the largest sum of the two ranks wins, ties go to the smaller α.

    Online there is no fit: `sfda validate` predicts each batch of the target, then lets the target statistics follow
    it, statistics ← (1 − λ) · statistics + λ · batch, from the source's on. The source domain is scored after that.

    Writes ``ada_bn.json`` (α, the scores, how many of the network's normalisation layers were changed, the shift of
    every BN layer) and ``ada_bn_layers.png`` into the run folder.

    Args:
        alpha: α in [0, 1], or ``auto`` (not online).
        scored_images: Target images that each α is scored on, with ``auto``.
        layers: ``all`` BN layers, or only those nearest the image (``input``).
        online: Follow a stream in `sfda validate`.
        forgetting: λ in (0, 1], online only.
        **base: Options of `Method`.

    Raises:
        UserError: an option is out of its range, or the network has no BN layer.
    """

    needs = Needs(target="images", view="plain")

    def __init__(
        self,
        alpha: float | Literal["auto"] = 1.0,
        scored_images: int = 32,
        layers: Literal["all", "input"] = "all",
        online: bool = False,
        forgetting: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if alpha != "auto" and not 0 <= alpha <= 1:
            raise UserError(f"model option alpha: auto, or a number from 0 to 1, not {alpha}")
        if online and alpha == "auto":
            raise UserError("model option alpha: a number with online: true, auto needs the images beforehand")
        refuse_outside(0, 1, "(]", forgetting=forgetting)
        if not batch_norm_layers(self.network):
            raise UserError(
                f"AdaBN changes the running statistics of BatchNorm layers, and {base['network']} has none: take tent, "
                "info_max with --model.init_args.trains normalisation (scale and shift of its other normalisation), "
                "mean_teacher_source_free or cotta, or average predictions with --model.init_args.views multi_scale"
            )
        if scored_images < 1:
            raise UserError(f"model option scored_images: at least 1, not {scored_images}")
        self.alpha = alpha
        self.scored_images = scored_images
        self.layers = layers
        self.online = online
        self.forgetting = forgetting
        if online:
            keep_lone_values(self.network)
        self._statistics = BatchStatistics(self.network)
        self._images: list[Tensor] = []

    def gather(self, batch: Batch) -> None:
        """Sum the statistics of the target images; keep the first ones to score α on."""
        images = batch["target"]["image"]
        with self._statistics:
            self.network(images)
        wanted = max(1, self.scored_images // self.trainer.world_size) - sum(len(kept) for kept in self._images)
        if self.alpha == "auto" and wanted > 0:
            self._images.append((images[:wanted] * 255).round().byte().cpu())

    def finish(self) -> None:
        """Mix the statistics, and report."""
        source = read_statistics(self.network)
        target = self._statistics.reduce().mean_and_variance()
        changed = self._changed_layers()
        scores: list[dict[str, float]] = []
        if self.alpha == "auto":
            scores = self._score_alphas(source, target, changed)
            # max keeps the first of equals, which is the smaller α
            alpha = max(scores, key=lambda score: score["rank_sum"])["alpha"]
        else:
            alpha = float(self.alpha)
        mix_statistics(self.network, source, target, alpha, changed)
        self._report(alpha, scores, layer_shift(source, target), changed)

    def _changed_layers(self) -> set[str]:
        if self.layers == "all":
            return set(batch_norm_layers(self.network))
        return input_layers(self.network, torch.zeros(1, 3, 64, 64, device=self.device))

    def _score_alphas(self, source: Statistics, target: Statistics, changed: set[str]) -> list[dict[str, float]]:
        scored = []
        with self.show_progress("choosing α", len(ALPHAS) * len(self._images)) as advance:
            for alpha in ALPHAS:
                mix_statistics(self.network, source, target, alpha, changed)
                scored.append(self._score(advance))
        agreement, information = torch.tensor(scored, dtype=torch.float64).T
        rank_sums = ranks(agreement) + ranks(information)
        rows = torch.stack([torch.tensor(ALPHAS, dtype=torch.float64), agreement, information, rank_sums], dim=1)
        return [dict(zip(("alpha", "agreement", "infomax", "rank_sum"), row, strict=True)) for row in rows.tolist()]

    def _score(self, advance: Advance) -> tuple[float, float]:
        """Mean view agreement and InfoMax of the network as it is, over all ranks' images."""

        def predict(images: Tensor, size: tuple[int, int]) -> Tensor:
            return self.score_probabilities(self.single_view_probabilities(images, size))

        agreement = MeanMetric().set_dtype(torch.float64).to(self.device)
        label_free = LabelFreeMetrics(len(self.datamodule.score_classes)).to(self.device)
        for kept in self._images:
            images = kept.to(self.device).float() / 255
            probabilities = predict(images, (images.shape[-2], images.shape[-1]))
            agreement.update(view_agreement(predict, images, top_label(probabilities)[1]))
            label_free.update(probabilities)
            advance(1)
        return float(agreement.compute()), float(label_free.compute()["infomax"])

    def on_validation_start(self) -> None:
        """A stream begins with the source model, whatever a checkpoint holds."""
        super().on_validation_start()
        if not self.online:
            return
        if self._has_run_weights:
            self.initialise_from_source()
        self._source = read_statistics(self.network)
        self._followed = dict(self._source)
        self._changed = self._changed_layers()

    def adapt_online(self, images: Tensor) -> None:
        """Follow a batch that has been predicted."""
        if not self.online:
            return
        with BatchStatistics(self.network) as gathered:
            self.network(images)
        for name, batch in gathered.mean_and_variance().items():
            mean, variance = (
                torch.lerp(old, new, self.forgetting) for old, new in zip(self._followed[name], batch, strict=True)
            )
            self._followed[name] = (mean, variance)
        mix_statistics(self.network, self._source, self._followed, float(self.alpha), self._changed)

    def on_validation_end(self) -> None:
        """Online, the report of where the stream has led."""
        if self.online:
            self._report(float(self.alpha), [], layer_shift(self._source, self._followed), self._changed)

    def _report(
        self, alpha: float, scores: list[dict[str, float]], shifts: list[LayerShift], changed: set[str]
    ) -> None:
        if not self.trainer.is_global_zero:
            return
        reached, total = len(changed), len(normalisation_layers(self.network))
        sys.stdout.write(
            f"α = {alpha:g}; AdaBN reaches {reached} of {total} normalisation layers{_few(changed)}; scores and the "
            f"shift of every layer are in {self.run_folder / 'ada_bn.json'}\n"
        )
        layers = [{**shift._asdict(), "changed": shift.layer in changed} for shift in shifts]
        counts = {"reached_layers": reached, "normalisation_layers": total}
        report = {"alpha": alpha, **counts, "scores": scores, "layers": layers}
        write_json(self.run_folder / "ada_bn.json", report)
        draw_layer_shift(shifts, self.run_folder / "ada_bn_layers.png")


def _few(layers: set[str]) -> str:
    """Names, where they are few, as the network's own code calls them."""
    names = sorted(name.removeprefix("network.") for name in layers)
    return f" ({', '.join(names)})" if 0 < len(names) <= FEW_LAYERS else ""


def draw_layer_shift(shifts: list[LayerShift], path: Path) -> None:
    """Where the domain gap sits: mean shift and variance ratio of every BN layer, from the image to the logits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, 0.14 * len(shifts) + 2), 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    position = range(len(shifts))
    upper.bar(position, [shift.mean_shift for shift in shifts])
    upper.set_ylabel("mean shift\n(source std. dev.)")
    lower.bar(position, [shift.variance_ratio - 1 for shift in shifts], bottom=1)
    lower.axhline(1, color="black", linewidth=0.8)
    lower.set_ylabel("variance ratio\ntarget / source")
    lower.set_xlabel("BatchNorm layer, from the image to the logits")
    figure.suptitle("Where the domain gap sits")
    write_figure(path, figure, dpi=110)
