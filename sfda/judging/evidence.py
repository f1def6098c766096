"""What is known of a model without labels, image by image, so that models are compared on the same ones."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfda.judging.perturbations import perturbed_agreement
from sfda.metrics.functional import top_label
from sfda.metrics.label_free import COVERAGE_SHARE
from sfda.metrics.view_agreement import Predict, view_agreement

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A model as it is judged.

    Attributes:
        predict: Its predictions.
        single: Its predictions of one view, which agreement is measured on: averaged views agree by construction.
    """

    predict: Predict
    single: Predict


@dataclass(frozen=True)
class Evidence:
    """Of one model, one row per image (N).

    Attributes:
        views: Share of pixels that keep their class in other views (`sfda.metrics.view_agreement`), in [0, 1].
        perturbed: Share of pixels that keep their class under `perturbations`, in [0, 1].
        judged: Share of pixels that have the class that the second judge gives them, in [0, 1].
        kept: Share of pixels that have the source model's class, in [0, 1].
        entropy: Mean entropy of a pixel, in nats, of one view: averaging views raises it.
        probabilities: Mean probabilities, (N, C), of one view.
        mass: Share of pixels of each class, (N, C).
        judge_mass: The same of the second judge, (N, C).
    """

    views: Values
    perturbed: Values
    judged: Values
    kept: Values
    entropy: Values
    probabilities: Values
    mass: Values
    judge_mass: Values

    @property
    def infomax(self) -> float:
        """H(mean p) − mean H(p) over all images, in nats."""
        return float(_infomax(self.probabilities.mean(axis=0), self.entropy.mean()))

    @property
    def information(self) -> Values:
        """What each image adds to `infomax`: the jackknife's pseudo-values, (N,), whose spread is that of their mean.

        A single image adds all. (Efron and Tibshirani, An Introduction to the Bootstrap, section 11.)
        """
        count = len(self.entropy)
        if count == 1:
            return np.array([self.infomax])
        others = (self.probabilities.sum(axis=0) - self.probabilities) / (count - 1)
        without = _infomax(others, (self.entropy.sum() - self.entropy) / (count - 1))
        return np.asarray(count * self.infomax - (count - 1) * without)

    @property
    def coverage(self) -> float:
        """Share of the classes that are predicted at least once in 10,000 pixels."""
        return float((self.mass.mean(axis=0) >= COVERAGE_SHARE).mean())

    @property
    def drift(self) -> float:
        """How far the classes' shares lie from those of the second judge: total variation, in [0, 1]."""
        return float(np.abs(self.mass.mean(axis=0) - self.judge_mass.mean(axis=0)).sum() / 2)


def _infomax(mean: Values, entropy: Any) -> Any:
    return -(mean * np.log(np.maximum(mean, 1e-30))).sum(axis=-1) - entropy


@torch.inference_mode()
def look_at(image: Tensor, source: Model, judge: Predict, models: Mapping[str, Model]) -> dict[str, Evidence]:
    """The evidence of an image (1, 3, H, W), one row per model; ten passes per model and two more."""
    size = (image.shape[-2], image.shape[-1])
    before = top_label(source.predict(image, size))[1]
    judged = top_label(judge(image, size))[1]
    return {name: _look(image, model, before, judged) for name, model in models.items()}


def _look(image: Tensor, model: Model, before: Tensor, judged: Tensor) -> Evidence:
    size = (image.shape[-2], image.shape[-1])
    classes = top_label(model.predict(image, size))[1]
    probabilities = model.single(image, size).double()
    plain = top_label(probabilities)[1]
    count = probabilities.shape[1]
    return Evidence(
        views=view_agreement(model.single, image, plain).cpu().numpy(),
        perturbed=perturbed_agreement(model.single, image, plain).cpu().numpy(),
        judged=np.array([_same(classes, judged)]),
        kept=np.array([_same(classes, before)]),
        entropy=torch.special.entr(probabilities).sum(1).mean((1, 2)).cpu().numpy(),
        probabilities=probabilities.mean((2, 3)).cpu().numpy(),
        mass=_mass(classes, count),
        judge_mass=_mass(judged, count),
    )


def _same(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


def _mass(classes: Tensor, count: int) -> Values:
    shares = torch.bincount(classes.flatten().long(), minlength=count).double() / classes.numel()
    return shares.cpu().numpy()[None]


def together(rows: list[Evidence]) -> Evidence:
    """The evidence of several images."""
    names = [field.name for field in fields(Evidence)]
    return Evidence(**{name: np.concatenate([getattr(row, name) for row in rows]) for name in names})
