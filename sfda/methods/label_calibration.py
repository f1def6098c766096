"""Label calibration: the class whose prototype is nearest to the predicted probabilities; no back-propagation."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.data.sampling import run_seed
from sfda.errors import UserError, refuse_outside
from sfda.files import write_figure, write_json
from sfda.methods.kinds.gathered import GatheredMethod
from sfda.methods.kinds.online import OnlineMethod
from sfda.networks.label_calibration_head import (
    LabelCalibrationHead,
    fit_temperature,
    present_classes,
    prototype_sums,
    prototypes_from_sums,
)
from sfda.pseudo_labels.uniform_sample import UniformSample
from sfda.ranks import sum_over_ranks

SAMPLE = 2**18
"""Probability vectors that the temperature is fitted on at most, all processes together."""

ONLINE_SAMPLE = 2**14
"""Probability vectors of one batch that the temperature is fitted on online."""


class LabelCalibration(OnlineMethod, GatheredMethod):
    """Predicts argmin_c ‖p − q_c‖ with q_c = Σ conf^γ·p / Σ conf^γ over the target pixels predicted as class c.

    Implemented from the published description of "Label Calibration for Semantic Segmentation Under Domain Shift"
    (arXiv 2307.10842); the network stays as it is, a `LabelCalibrationHead` after it is fitted in one pass over the
    target training images. Probabilities are softmax(−‖p − q_c‖² / τ), with τ fitted so that the mean confidence over
    a uniform sample of the target pixels stays the same; τ is this project's. A class that no pixel was predicted as
    keeps its one-hot vector. Before any fit the head has one-hot vectors alone and predicts what the network does.

    An epoch has full batches only, as for every method: with ``batch_size: 1`` every image counts.

    Online there is no fit: `sfda validate` predicts each batch of the target with the prototypes of the batches
    before it, then adds the batch to them and refits τ on it. The source domain is scored after that, with the last
    prototypes.

    Writes ``label_calibration.json`` (prototypes, absent classes, τ, where the time went) and
    ``label_calibration_prototypes.png`` into the run folder.

    Args:
        gamma: γ ≥ 0; 0 gives every pixel the same weight.
        online: Follow a stream in `sfda validate`.
        forgetting: λ in [0, 1], online only: sums are multiplied by 1 − λ before each batch is added.
        **base: Options of `Method`.

    Raises:
        UserError: an option is out of its range, or `forgetting` is given without `online`.
    """

    needs = Needs(target="images", view="plain")

    def __init__(self, gamma: float = 1.0, online: bool = False, forgetting: float = 0.0, **base: Any) -> None:
        super().__init__(**base)
        refuse_outside(0, math.inf, "[)", gamma=gamma)
        refuse_outside(0, 1, forgetting=forgetting)
        if forgetting and not online:
            raise UserError("model option forgetting works online only: set online to true, or forgetting to 0")
        self.gamma = gamma
        self.online = online
        self.forgetting = forgetting
        self.head = LabelCalibrationHead(base["num_classes"])
        self._follows_stream = False
        self._predicted: tuple[Tensor, dict[str, float]] | None = None
        self._start_again()

    def _start_again(self, processes: int = 1, rank: int = 0) -> None:
        num_classes = len(self.head.conv.weight)
        # Plain tensors: DDP overwrites buffers with those of rank 0.
        self._sums = torch.zeros(num_classes, num_classes + 2, dtype=torch.float64)
        self._sample = UniformSample(ONLINE_SAMPLE if self.online else SAMPLE // processes, (run_seed(), rank))
        self._seconds = {"forward": 0.0, "prototypes": 0.0, "prediction": 0.0}

    def setup(self, stage: str) -> None:
        """Sums and sample of this process."""
        super().setup(stage)
        self._start_again(self.trainer.world_size, self.trainer.global_rank)

    def predict_probabilities(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Calibrated probabilities; see `Method.predict_probabilities`."""
        if not self._follows_stream:
            calibrated: Tensor = self.head(super().predict_probabilities(images, size))
            return calibrated
        self._predicted = None  # source images are scored too, and nothing is learnt from them
        seconds: dict[str, float] = {}
        with self._timed("forward", seconds):
            probabilities = super().predict_probabilities(images, size)
        with self._timed("prediction", seconds):
            calibrated = self.head(probabilities)
        self._predicted = probabilities, seconds
        return calibrated

    def gather(self, batch: Batch) -> None:
        """Add a batch to the sums and to the sample."""
        probabilities = self._probabilities(batch["target"]["image"])
        self._add(probabilities)
        with self._timed("prediction"):  # for the report alone; its time does not depend on the prototypes
            self.head(probabilities)

    def finish(self) -> None:
        """Prototypes and temperature from all processes' sums, and the report."""
        with self._timed("prototypes"):
            self._sums = sum_over_ranks(self._sums.to(self.device))
            if not self._sums[:, -1].any():
                raise UserError(
                    "no target training image could be read: `sfda data check` lists what is wrong with them"
                )
            self._fit_head()
        self._report()

    def _probabilities(self, images: Tensor) -> Tensor:
        with self._timed("forward"):
            return self.view_probabilities(images, (images.shape[-2], images.shape[-1]))

    def _add(self, probabilities: Tensor) -> None:
        with self._timed("prototypes"):
            self._sums = (1 - self.forgetting) * self._sums.to(self.device) + prototype_sums(probabilities, self.gamma)
            self._sample.add(probabilities)

    def _fit_head(self) -> None:
        prototypes = prototypes_from_sums(self._sums)
        sample = self._sample.of_all_ranks(self.device).reshape(-1, len(prototypes))  # a process may have had no pixel
        self.head.set_prototypes(prototypes, fit_temperature(sample, prototypes))

    def on_validation_start(self) -> None:
        """A stream begins with one-hot prototypes, whatever a checkpoint holds."""
        super().on_validation_start()
        if self.online:
            self._start_again()
            self.head.reset()
            self._follows_stream = True

    def adapt_online(self, images: Tensor) -> None:
        """Add a batch that has been predicted, with the probabilities that the network gave it then."""
        if not self.online:
            return
        if self._predicted is None:
            probabilities = self._probabilities(images)
        else:
            probabilities, seconds = self._predicted
            self._predicted = None
            self._seconds = {part: spent + seconds.get(part, 0) for part, spent in self._seconds.items()}
        self._sample.clear()
        self._add(probabilities)
        with self._timed("prototypes"):
            self._fit_head()

    def on_validation_end(self) -> None:
        """Online, the report of where the stream has led."""
        if self.online:
            self._follows_stream, self._predicted = False, None
            self._report()

    @contextmanager
    def _timed(self, part: str, seconds: dict[str, float] | None = None) -> Iterator[None]:
        start = self._now()
        yield
        spent = self._seconds if seconds is None else seconds
        spent[part] = spent.get(part, 0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _report(self) -> None:
        if not self.trainer.is_global_zero:
            return
        names = self.datamodule.classes.names
        present = present_classes(self._sums).tolist()
        prototypes = self.head.prototypes.cpu()
        report = {
            "gamma": self.gamma,
            "online": self.online,
            "forgetting": self.forgetting,
            "temperature": self.head.temperature,
            "absent_classes": [name for name, there in zip(names, present, strict=True) if not there],
            "prototype_diagonal": dict(zip(names, prototypes.diagonal().tolist(), strict=True)),
            "pixels": {name: round(count) for name, count in zip(names, self._sums[:, -1].tolist(), strict=True)},
            "seconds": {part: round(seconds, 4) for part, seconds in self._seconds.items()},
        }
        write_json(self.run_folder / "label_calibration.json", report)
        draw_prototypes(prototypes, names, self.run_folder / "label_calibration_prototypes.png")


def draw_prototypes(prototypes: Tensor, names: Sequence[str], path: Path) -> None:
    """The matrix of prototypes (C, C): how probable each class is where the network predicts a class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.35 * len(names) + 3, 0.35 * len(names) + 2), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(prototypes.numpy(), vmin=0, vmax=1, cmap="viridis")
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("mean probability of")
    axis.set_ylabel("predicted class")
    figure.colorbar(picture, shrink=0.8)
    write_figure(path, figure, dpi=110)
