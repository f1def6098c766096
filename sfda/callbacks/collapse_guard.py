"""Warns when a fit without labels departs too far from its source model, or collapses."""

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.datasets import DomainBatch
from sfda.files import write_json
from sfda.judging.second_judge import BATCH, GATHERED, second_judge
from sfda.methods.kinds.trained import TrainedMethod
from sfda.metrics.functional import top_label
from sfda.metrics.judge_agreement import JudgeAgreement
from sfda.metrics.label_free import LabelFreeMetrics
from sfda.networks.batch_norm import batch_norm_layers
from sfda.networks.finite import refuse_nan
from sfda.networks.segmenter import eval_mode
from sfda.runs.checkpoints import load_source_network

IMAGES = 32
"""Target validation images that are looked at, the first ones."""
PIXELS = 2**16
"""Pixels of an image whose class is remembered at most, evenly spaced: every checkpoint carries them."""
MOST_CHURN = 0.5
"""More than half of the pixels in another class than the source model's: no correction of it any more."""
SMALLEST_SHARE = 0.5
"""Of the source model's class coverage, and of its InfoMax."""


class CollapseGuard(MethodCallback):
    """Watches every fit that has an optimizer and reads target images, but no target labels.

    Before the first step, and at every validation of the fit, it looks at the same few target validation images:

    - ``churn``, the share of pixels in another class than the source model gave them, warned of above `MOST_CHURN`;
    - ``class_coverage`` and ``infomax`` (see `sfda.metrics.label_free`), warned of below `SMALLEST_SHARE` of their
      values for the source model.

    Each of the three is warned of once. Beside them stand ``judge_agreement`` and ``class_drift``, which compare with a
    second judge (`sfda.judging.second_judge`) and which a selector may choose by. All values are written to
    ``collapse_guard.json`` in the run folder, and those that compare are logged. What source model and judge predicted
    travels with the checkpoints, so that a resumed fit is compared with them too. The thresholds are this project's,
    and no proof: they were not validated on other data.
    """

    def __init__(self) -> None:
        self.source: dict[str, Tensor] = {}
        self.judge: dict[str, Tensor] = {}
        self.start: dict[str, float] = {}
        self.epochs: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the source model; a resumed run has its predictions from the checkpoint."""
        method = self.method
        if not isinstance(method, TrainedMethod) or method.needs.target != "images":
            return
        if trainer.ckpt_path is not None or trainer.limit_val_batches == 0:
            return
        # The method may have begun to adapt: BN statistics are re-estimated before there are pseudo-labels.
        adapted = copy.deepcopy(method.network.state_dict())
        if method.source_checkpoint is not None:
            load_source_network(method.network, method.source_checkpoint, method.hparams)
        self._look_at_source(trainer)
        method.network.load_state_dict(adapted)

    @torch.no_grad()
    def _look_at_source(self, trainer: L.Trainer) -> None:
        method, scores = self.method, self._label_free()
        # All ranks look at all of them: whichever saves a checkpoint has what every rank will need.
        with eval_mode(method), trainer.precision_plugin.forward_context():
            judge = second_judge(
                method.network,
                lambda: (batch["image"] for batch in self._batches(GATHERED, BATCH)),
                method.score_probabilities,
            )
            for batch in self._batches(IMAGES):
                images = batch["image"]
                probabilities = method.score_probabilities(method.predict_probabilities(images))
                refuse_nan(probabilities, batch["name"], method.advice_against_nan)
                scores.update(probabilities)
                judged = judge(images, (images.shape[-2], images.shape[-1]))
                self.source |= dict(zip(batch["name"], _some_classes(probabilities).cpu(), strict=True))
                self.judge |= dict(zip(batch["name"], _some_classes(judged).cpu(), strict=True))
        if self.source:
            self.start = _values(scores)

    def _batches(self, first: int, batch_size: int | None = None) -> Iterator[DomainBatch]:
        return self.method.datamodule.plain_batches(
            "target",
            self.method.device,
            split="val",
            title="looking at the source model",
            first=first,
            batch_size=batch_size,
        )

    def _is_on(self) -> bool:
        trainer = self.method.trainer
        return bool(self.source) and trainer.state.fn == "fit" and not trainer.sanity_checking

    def _label_free(self) -> LabelFreeMetrics:
        return LabelFreeMetrics(len(self.method.datamodule.score_classes)).to(self.method.device)

    @override
    def on_validation_start(self, *_: Any) -> None:
        if self._is_on():
            self._churn = MeanMetric().set_dtype(torch.float64).to(self.method.device)
            self._judge_agreement = JudgeAgreement(len(self.method.datamodule.score_classes)).to(self.method.device)
            self._scores = self._label_free()

    @override
    def on_scored(self, domain: str, batch: DomainBatch, probabilities: Tensor) -> None:
        watched = [i for i, name in enumerate(batch["name"]) if name in self.source]
        if self._is_on() and watched:
            self._scores.update(probabilities[watched])
            classes = _some_classes(probabilities[watched])
            before, judged = (
                torch.stack([known[batch["name"][i]] for i in watched]).to(classes)
                for known in (self.source, self.judge)
            )
            self._churn.update((classes != before).double())
            self._judge_agreement.update(classes, judged)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the values over all ranks, warn, and write the report."""
        if not self._is_on():
            return
        compared = {"churn": self._churn.compute(), **self._judge_agreement.compute()}
        values = {**{name: float(value) for name, value in compared.items()}, **_values(self._scores)}
        if math.isnan(values["churn"]):  # a shortened validation saw none of the images
            return
        for name in compared:
            pl_module.log(f"target/{name}", values[name], sync_dist=True)
        known = {reason for row in self.epochs for reason in row["warned"]}
        reasons = {reason: text for reason, text in self._reasons(values).items() if reason not in known}
        epoch = trainer.current_epoch
        self.epochs.append({"epoch": epoch, "step": trainer.global_step, **values, "warned": sorted(reasons)})
        if not trainer.is_global_zero:
            return
        for text in reasons.values():
            advice = "its learning rate may be too high"
            if batch_norm_layers(self.method.network):
                advice += ", or new BatchNorm statistics do this alone (compare ada_bn)"
            warnings.warn(f"{type(pl_module).__name__}: {text} (epoch {epoch}); {advice}", stacklevel=1)
        report = {"images": len(self.source), "source": self.start, "epochs": self.epochs}
        write_json(self.method.run_folder / "collapse_guard.json", report)

    def _reasons(self, values: dict[str, float]) -> dict[str, str]:
        reasons = {}
        if (churn := values["churn"]) > MOST_CHURN:
            reasons["churn"] = f"{100 * churn:.0f} % of the pixels have another class than the source model gave them"
        now, before = values["class_coverage"], self.start["class_coverage"]
        if now < SMALLEST_SHARE * before:
            shares = f"{100 * now:.0f} % of the classes are still predicted, {100 * before:.0f} % by the source model"
            reasons["class_coverage"] = shares
        now, before = values["infomax"], self.start["infomax"]
        if now < SMALLEST_SHARE * before:
            reasons["infomax"] = f"InfoMax has fallen to {now:.2f} nats, from {before:.2f} of the source model"
        return reasons

    @override
    def state_dict(self) -> dict[str, Any]:
        if not self.source:
            return {}
        return {"source": self.source, "judge": self.judge, "start": self.start, "epochs": self.epochs}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.source, self.judge = dict(state_dict["source"]), dict(state_dict["judge"])
        self.start = dict(state_dict["start"])
        self.epochs = list(state_dict["epochs"])


def _values(scores: LabelFreeMetrics) -> dict[str, float]:
    computed = scores.compute()
    return {name: float(computed[name]) for name in ("class_coverage", "infomax")}


def _some_classes(probabilities: Tensor) -> Tensor:
    """Predicted classes of at most `PIXELS` evenly spaced pixels per image: (B, C, H, W) → (B, n) uint8."""
    classes = top_label(probabilities)[1].flatten(1)
    return classes[:, :: math.ceil(classes.shape[1] / PIXELS)]
