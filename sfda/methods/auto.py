"""A model used as well as it can be without training it, chosen without a label."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.errors import UserError
from sfda.files import write_json
from sfda.methods.kinds.gathered import GatheredMethod
from sfda.methods.kinds.method import Method
from sfda.methods.kinds.scaled import ScaledMethod
from sfda.metrics.functional import top_label
from sfda.metrics.label_free import LabelFreeMetrics
from sfda.networks.batch_norm import (
    BatchStatistics,
    Statistics,
    mix_statistics,
    read_statistics,
)
from sfda.networks.input_correction import UNCHANGED, correct_input, fit_input_correction
from sfda.networks.resampling import scale_images
from sfda.progress import Advance
from sfda.ranks import sum_over_ranks
from sfda.search.candidates import SOURCE, Candidate, Scored
from sfda.search.report import draw_search, search_table
from sfda.search.search import Decision, search, steps_for

STATISTICS_IMAGES = 16
"""Images, all processes together, that BatchNorm statistics are estimated on."""
COLOUR_IMAGES = 4
"""Of them, those that the correction of colours is fitted on."""


class Auto(ScaledMethod, GatheredMethod):
    """The size at which the network sees images, its BatchNorm statistics and its colours, chosen without a label.

    A network carries the focal length, resolution and colours of the images that it was trained on; those of another
    camera are brought to it. Nothing is trained. A search, coarse to fine (`sfda.search.search`), scores each candidate
    on a few target training images by the agreement of an image with its mirror image, plus InfoMax over the scored
    classes as a share of its largest value, ln C. What does not score more is not done: then this is the source model.
    By default it predicts with averaged views (`views`), around the size that was chosen.

    The choice is part of the checkpoint, so that whatever predicts with it sees images at that size by itself: the
    statistics and the colours are in the network's buffers, the size is under ``input_scale``. The ``network`` alone,
    as a start of another method, knows nothing of the size.

    Writes ``auto.json`` (all candidates with their scores and seconds, what each step chose and why) and ``auto.png``
    into the run folder.

    Args:
        scored_images: Target images that each candidate is scored on, all processes together.
        **base: Options of `Method`.

    Raises:
        UserError: an option is out of its range.
    """

    needs = Needs(target="images", view="plain")
    optimises = ("infomax", "views")

    def __init__(self, scored_images: int = 12, **base: Any) -> None:
        super().__init__(**base)
        if scored_images < 1:
            raise UserError(f"model option scored_images: at least 1, not {scored_images}")
        self.scored_images = scored_images
        self._images: list[Tensor] = []

    def start_from_size(self, scale: float) -> None:
        """A size that was chosen before is not gone on from: it is chosen again, from 1."""
        Method.start_from_size(self, scale)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The size that was chosen.

        Raises:
            UserError: the checkpoint does not hold it.
        """
        super().on_load_checkpoint({"input_scale": None, **checkpoint})

    def gather(self, batch: Batch) -> None:
        """Keep the first images."""
        images = batch["target"]["image"]
        wanted = max(1, max(STATISTICS_IMAGES, self.scored_images) // self.trainer.world_size)
        wanted -= sum(len(kept) for kept in self._images)
        if wanted > 0:
            self._images.append((images[:wanted] * 255).round().byte().cpu())

    def finish(self) -> None:
        """Search, and use the network as it was chosen.

        Raises:
            UserError: no image could be read.
        """
        if not sum_over_ranks(torch.tensor(len(self._images), device=self.device)):
            raise UserError("no target training image could be read: `sfda data check` lists what is wrong with them")
        self._source = read_statistics(self.network)
        self._preprocessing = self.network.mean.clone(), self.network.std.clone()
        images = [image for batch in self._kept(COLOUR_IMAGES) for image in batch]
        self._correction = fit_input_correction(self.network, images, self._source) if self._source else UNCHANGED
        self._statistics: dict[tuple[float, float], Statistics] = {}
        decisions = list(search(steps_for(has_batch_norm=bool(self._source)), self._score_all))
        self._use(decisions[-1].chosen.candidate)
        self._report(decisions)

    def _use(self, candidate: Candidate) -> None:
        """Use the network so: its size, its colours, its statistics."""
        mix_statistics(self.network, self._source, self._source, 0)
        self.input_scale = candidate.scale
        correct_input(self.network, self._preprocessing, self._correction, candidate.colours)
        if candidate.alpha:
            mix_statistics(self.network, self._source, self._target_statistics(candidate), candidate.alpha)

    def _target_statistics(self, candidate: Candidate) -> Statistics:
        key = candidate.scale, candidate.colours
        if key not in self._statistics:
            with BatchStatistics(self.network) as gathered:
                for images in self._kept(STATISTICS_IMAGES):
                    self.network(scale_images(images, candidate.scale))
            self._statistics[key] = gathered.reduce().mean_and_variance()
        return self._statistics[key]

    def _kept(self, count: int) -> list[Tensor]:
        """The first of the kept images, `count` over all processes, in the batches in which they came."""
        left, batches = max(1, count // self.trainer.world_size), []
        for kept in self._images:
            batches.append(kept[:left].to(self.device).float() / 255)
            left -= len(batches[-1])
        return [batch for batch in batches if len(batch)]

    def _score_all(self, step: str, candidates: Sequence[Candidate]) -> list[Scored]:
        batches = [image for batch in self._kept(self.scored_images) for image in torch.split(batch, 1)]
        with self.show_progress(f"trying {step}", len(candidates) * len(batches)) as advance:
            return [self._score(candidate, batches, advance) for candidate in candidates]

    def _score(self, candidate: Candidate, batches: list[Tensor], advance: Advance) -> Scored:
        """Agreement of image and mirror image, and InfoMax, over the scored classes and all ranks' images."""
        begun = time.perf_counter()
        self._use(candidate)
        classes = len(self.datamodule.score_classes)
        agreement = MeanMetric().set_dtype(torch.float64).to(self.device)
        label_free = LabelFreeMetrics(classes).to(self.device)
        for images in batches:
            size = (images.shape[-2], images.shape[-1])
            plain = self.score_probabilities(self.single_view_probabilities(images, size))
            mirrored = self.score_probabilities(self.single_view_probabilities(images.flip(-1), size).flip(-1))
            agreement.update((top_label(plain)[1] == top_label(mirrored)[1]).double().mean(dim=(1, 2)))
            label_free.update(plain)
            advance(1)
        infomax = float(label_free.compute()["infomax"])
        return Scored(candidate, float(agreement.compute()), infomax, classes, time.perf_counter() - begun)

    def _report(self, decisions: list[Decision]) -> None:
        if not self.trainer.is_global_zero:
            return
        chosen = decisions[-1].chosen
        report = {"chosen": chosen.as_dict(), "steps": [decision.as_dict() for decision in decisions]}
        write_json(self.run_folder / "auto.json", report)
        draw_search(decisions, self.run_folder / "auto.png")
        sys.stdout.write(search_table(decisions))
        nothing = " (nothing scores more than the source model)" if chosen.candidate == SOURCE else ""
        sys.stdout.write(f"chosen: {chosen.candidate}{nothing}; {self.run_folder / 'auto.json'} has every score\n")
