"""Warns when a fit without labels departs too far from its source model, or collapses."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import MeanMetric
from typing_extensions import override

from sfda.files import write_json
from sfda.methods.kinds.method import Method
from sfda.methods.kinds.trained import TrainedMethod
from sfda.metrics.functional import top_label
from sfda.metrics.label_free import LabelFreeMetrics
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


class CollapseGuard(Callback):
    """Watches every fit that has an optimizer and reads target images, but no target labels.

    Before the first step, and at every validation of the fit, it looks at the same few target validation images:

    - ``churn``, the share of pixels in another class than the source model gave them, warned of above `MOST_CHURN`;
    - ``class_coverage`` and ``infomax`` (see `sfda.metrics.label_free`), warned of below `SMALLEST_SHARE` of their
      values for the source model.

    Each of the three is warned of once. All values are written to ``collapse_guard.json`` in the run folder, and
    ``target/churn`` is logged. What the source model predicted travels with the checkpoints, so that a resumed fit is
    compared with it too. The thresholds are this project's, and no proof: they were not validated on other data.
    """

    def __init__(self) -> None:
        self.source: dict[str, Tensor] = {}
        self.start: dict[str, float] = {}
        self.epochs: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the source model; a resumed run has its predictions from the checkpoint."""
        if not isinstance(pl_module, TrainedMethod) or trainer.ckpt_path is not None or trainer.limit_val_batches == 0:
            return
        if pl_module.needs.target != "images":
            return
        # The method may have begun to adapt: BN statistics are re-estimated before there are pseudo-labels.
        adapted = copy.deepcopy(pl_module.network.state_dict())
        if pl_module.source_checkpoint is not None:
            load_source_network(pl_module.network, pl_module.source_checkpoint, pl_module.hparams)
        self._look_at_source(trainer, pl_module)
        pl_module.network.load_state_dict(adapted)

    @torch.no_grad()
    def _look_at_source(self, trainer: L.Trainer, method: Method) -> None:
        data, scores = method.datamodule, _label_free(method)
        # All ranks look at all of them: whichever saves a checkpoint has what every rank will need.
        batches = data.plain_batches(
            "target", method.device, split="val", title="looking at the source model", first=IMAGES
        )
        with eval_mode(method), trainer.precision_plugin.forward_context():
            for batch in batches:
                probabilities = method.score_probabilities(method.predict_probabilities(batch["image"]))
                refuse_nan(probabilities, batch["name"], method.advice_against_nan)
                scores.update(probabilities)
                self.source |= dict(zip(batch["name"], _some_classes(probabilities).cpu(), strict=True))
        if self.source:
            self.start = _values(scores)

    def _is_on(self, trainer: L.Trainer) -> bool:
        return bool(self.source) and trainer.state.fn == "fit" and not trainer.sanity_checking

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._is_on(trainer):
            assert isinstance(pl_module, Method)
            self._churn = MeanMetric().set_dtype(torch.float64).to(pl_module.device)
            self._scores = _label_free(pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compare predictions of the watched images with those of the source model."""
        if not self._is_on(trainer) or outputs is None:
            return
        watched = [i for i, name in enumerate(batch["name"]) if name in self.source]
        if watched:
            self._scores.update(outputs[watched])
            before = torch.stack([self.source[batch["name"][i]] for i in watched]).to(outputs.device)
            self._churn.update((_some_classes(outputs[watched]) != before).double())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the values over all ranks, warn, and write the report."""
        if not self._is_on(trainer):
            return
        assert isinstance(pl_module, Method)
        values = {"churn": float(self._churn.compute()), **_values(self._scores)}
        if math.isnan(values["churn"]):  # a shortened validation saw none of the images
            return
        pl_module.log("target/churn", values["churn"], sync_dist=True)
        known = {reason for row in self.epochs for reason in row["warned"]}
        reasons = {reason: text for reason, text in self._reasons(values).items() if reason not in known}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, **values, "warned": sorted(reasons)}
        self.epochs.append(row)
        if not trainer.is_global_zero:
            return
        for text in reasons.values():
            epoch = f"(epoch {trainer.current_epoch})"
            advice = "its learning rate may be too high, or new BatchNorm statistics do this alone (compare ada_bn)"
            warnings.warn(f"{type(pl_module).__name__}: {text} {epoch}; {advice}", stacklevel=1)
        report = {"images": len(self.source), "source": self.start, "epochs": self.epochs}
        write_json(pl_module.run_folder / "collapse_guard.json", report)

    def _reasons(self, values: dict[str, float]) -> dict[str, str]:
        """What there is to warn of."""
        reasons = {}
        if values["churn"] > MOST_CHURN:
            changed = 100 * values["churn"]
            reasons["churn"] = f"{changed:.0f} % of the pixels have another class than the source model gave them"
        now, before = values["class_coverage"], self.start["class_coverage"]
        if now < SMALLEST_SHARE * before:
            shares = f"{100 * now:.0f} % of the classes are still predicted, {100 * before:.0f} % by the source model"
            reasons["class_coverage"] = shares
        now, before = values["infomax"], self.start["infomax"]
        if now < SMALLEST_SHARE * before:
            reasons["infomax"] = f"InfoMax has fallen to {now:.2f} nats, from {before:.2f} of the source model"
        return reasons

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit must know of the source model, and of the epochs before."""
        return {"source": self.source, "start": self.start, "epochs": self.epochs} if self.source else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The source model and the epochs of the fit that goes on."""
        self.source, self.start = dict(state_dict["source"]), dict(state_dict["start"])
        self.epochs = list(state_dict["epochs"])


def _label_free(method: Method) -> LabelFreeMetrics:
    return LabelFreeMetrics(len(method.datamodule.score_classes)).to(method.device)


def _values(scores: LabelFreeMetrics) -> dict[str, float]:
    computed = scores.compute()
    return {name: float(computed[name]) for name in ("class_coverage", "infomax")}


def _some_classes(probabilities: Tensor) -> Tensor:
    """Predicted classes of at most `PIXELS` evenly spaced pixels per image: (B, C, H, W) → (B, n) uint8."""
    classes = top_label(probabilities)[1].flatten(1)
    return classes[:, :: math.ceil(classes.shape[1] / PIXELS)]
