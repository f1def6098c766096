"""What is known of a model without labels, image by image, so that models are compared on the same ones."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfda.metrics.functional import top_label
from sfda.metrics.label_free import COVERAGE_SHARE
from sfda.metrics.view_agreement import Predict

Values = npt.NDArray[np.float64]
JUDGE = "second judge"
"""Its name among the models that are looked at."""


@dataclass(frozen=True)
class Model:
    """A model as it is judged.

    Attributes:
        predict: Its predictions.
        single: Its predictions of one view, whose entropy is looked at: averaging views raises it.
    """

    predict: Predict
    single: Predict


@dataclass(frozen=True)
class Evidence:
    """Of one model, one row per image (N).

    Attributes:
        against: Pixels by the second judge's class (rows) and the model's, as if the judge's were labels: (N, C, C).
        kept: Share of pixels that have the source model's class, in [0, 1].
        entropy: Mean entropy of a pixel, in nats, of one view.
        probabilities: Mean probabilities, (N, C), of one view.
    """

    against: Values
    kept: Values
    entropy: Values
    probabilities: Values

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
    def judged(self) -> float:
        """Share of pixels that have the class that the second judge gives them, in [0, 1]."""
        return float(np.trace(self.against.sum(axis=0)) / self.against.sum())

    @property
    def coverage(self) -> float:
        """Share of the classes that are predicted at least once in 10,000 pixels."""
        return float((self._shares(0) >= COVERAGE_SHARE).mean())

    @property
    def drift(self) -> float:
        """How far the classes' shares lie from those of the second judge: total variation, in [0, 1]."""
        return float(np.abs(self._shares(0) - self._shares(1)).sum() / 2)

    def _shares(self, axis: int) -> Values:
        """Of the pixels that have each class: the model's (0), or the second judge's (1); (C,)."""
        return np.asarray(self.against.sum(axis=0).sum(axis=axis) / self.against.sum())


def _infomax(mean: Values, entropy: Any) -> Any:
    return -(mean * np.log(np.maximum(mean, 1e-30))).sum(axis=-1) - entropy


@torch.inference_mode()
def look_at(image: Tensor, source: Model, judge: Predict, models: Mapping[str, Model]) -> dict[str, Evidence]:
    """The evidence of an image (1, 3, H, W), one row per model and one of the second judge, named `JUDGE`."""
    size = (image.shape[-2], image.shape[-1])
    before = top_label(source.predict(image, size))[1]
    probabilities = judge(image, size)
    judged = top_label(probabilities)[1]
    rows = {
        name: _look(model.predict(image, size), model.single(image, size), before, judged)
        for name, model in models.items()
    }
    return {JUDGE: _look(probabilities, probabilities, before, judged), **rows}


def _look(predicted: Tensor, single: Tensor, before: Tensor, judged: Tensor) -> Evidence:
    classes, single, count = top_label(predicted)[1], single.double(), predicted.shape[1]
    pairs = torch.bincount((judged.long() * count + classes).flatten(), minlength=count**2)
    return Evidence(
        against=pairs.double().cpu().numpy().reshape(1, count, count),
        kept=np.array([float((classes == before).double().mean())]),
        entropy=torch.special.entr(single).sum(1).mean((1, 2)).cpu().numpy(),
        probabilities=single.mean((2, 3)).cpu().numpy(),
    )


def together(rows: list[Evidence]) -> Evidence:
    """The evidence of several images."""
    names = [field.name for field in fields(Evidence)]
    return Evidence(**{name: np.concatenate([getattr(row, name) for row in rows]) for name in names})
