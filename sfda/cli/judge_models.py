"""The models that are judged: runs, the source model that they started from, and the second judge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfda.data.images import read_image
from sfda.data.label_spaces import CITYSCAPES19, ClassSet, load_class_set, score_groups
from sfda.data.photographs import Size
from sfda.data.transforms import resize_image
from sfda.errors import UserError
from sfda.judging.evidence import Model
from sfda.judging.models import model_of, source_method
from sfda.judging.second_judge import BATCH, second_judge
from sfda.methods import Method
from sfda.methods.kinds.rebuild import load_fixed_method
from sfda.metrics.functional import group_probabilities
from sfda.metrics.view_agreement import Predict
from sfda.runs.run import Run


@dataclass(frozen=True)
class Judged:
    """What all models that are compared have in common.

    Attributes:
        scored: The scored classes.
        groups: The scored class of each predicted one, or None.
        size: (height, width) at which the networks see the images; None: as they are.
        device: Where the models are.
        label_options: What the label maps hold, as a `Domain` says it.
    """

    scored: ClassSet
    groups: Tensor | None
    size: Size | None
    device: str
    label_options: Mapping[str, str]

    def over_scored(self, probabilities: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_scored, H, W)."""
        if self.groups is None:
            return probabilities
        return group_probabilities(probabilities, self.groups, len(self.scored))

    def tensor(self, image: Any) -> Tensor:
        """Pixels (H, W, 3), 0-255 → (1, 3, *size) in [0, 1]."""
        pixels = np.ascontiguousarray(resize_image(image, self.size).transpose(2, 0, 1))
        return torch.from_numpy(pixels)[None].to(self.device).float() / 255

    def model(self, method: Method) -> Model:
        """A method, over the scored classes."""
        return model_of(method, self.over_scored)


def num_classes_of(run: Run) -> int:
    """Of the run's network."""
    return len(load_class_set(run.data().get("classes") or CITYSCAPES19.name))


def what_is_common(runs: Sequence[Run], score_classes: str | None, label_values: str | None = None) -> Judged:
    """Classes and size of the runs.

    Args:
        runs: At least one.
        score_classes: Class set of the label maps; None: what the runs score.
        label_values: What label maps in Cityscapes classes hold; None: what the runs' data say.

    Raises:
        UserError: they are not the same for all.
    """
    first = runs[0].data()
    for run in runs[1:]:
        for key in ("classes", "score_classes", "size"):
            if (theirs := run.data().get(key)) != (ours := first.get(key)):
                raise UserError(
                    f"{run.folder} has data.{key} {theirs}, {runs[0].folder} has {ours}: judge them one by one"
                )
    classes = load_class_set(first.get("classes") or CITYSCAPES19.name)
    scored = load_class_set(score_classes or first.get("score_classes") or classes.name)
    groups = score_groups(classes, scored)
    size = first.get("size")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = None if groups is None else torch.from_numpy(groups).long()
    told = first["target"]
    labels = {key: told[key] for key in ("classes", "label_values") if told.get(key)}
    labels = {"classes": score_classes} if score_classes else {"classes": scored.name, **labels}
    if label_values:
        labels["label_values"] = label_values
    return Judged(scored, table, tuple(size) if size else None, device, labels)


def source_of(runs: Sequence[Run], source: Run | None) -> Method:
    """The source model: a run of its own, or the checkpoint that all runs started from.

    Raises:
        UserError: they started from several, or from none.
    """
    if source is not None:
        return load_fixed_method(source, num_classes_of(source))
    options = [run.model() for run in runs]
    checkpoints = sorted({str(each.get("source_checkpoint")) for each in options})
    if len(checkpoints) > 1 or checkpoints == ["None"]:
        raise UserError(f"the runs started from {', '.join(checkpoints)}: name the run of the source model, --source")
    return source_method(options[0], num_classes_of(runs[0]))


def judge_of(source: Method, judged: Judged, images: Sequence[Path]) -> Predict:
    """The second judge of a source model, over the scored classes, by `sfda.judging.second_judge`."""
    together = BATCH if judged.size else 1  # images of their own sizes are no batch

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(images), together):
            yield torch.cat([judged.tensor(read_image(path)) for path in images[start : start + together]])

    return second_judge(source.network, batches, judged.over_scored)
