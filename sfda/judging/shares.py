"""How far to go from the network that training began with to the one that it led to, chosen without labels."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sfda.metrics.functional import score_sums, top_label
from sfda.metrics.label_free import label_free_scores
from sfda.metrics.view_agreement import Predict

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What is tried."""
IMAGES = 12
"""Images that it is tried on."""


@dataclass(frozen=True)
class ScoredShare:
    """A share and what is known of it without a label.

    Attributes:
        share: Part of the way from the start to what was trained, in [0, 1].
        agreement: Share of pixels that have one and the same class in an image and its mirror image, in [0, 1].
        infomax: H(mean p) − mean H(p) over the scored classes, in nats.
        judged: Share of pixels with the class that the second judge gives them, in [0, 1]; None where it is not asked.
        score: Agreement + InfoMax / ln C, without what the method trains on; `judged` where nothing else is left.
    """

    share: float
    agreement: float
    infomax: float
    judged: float | None
    score: float

    def as_dict(self) -> dict[str, Any]:
        """As ``selection.json`` has it."""
        return asdict(self)


def needs_judge(trains_on: Collection[str]) -> bool:
    """Whether all other scores are trained on, so that the second judge has to choose.

    Added to the others it would take too little of what follows the target's statistics: it has a share of its own.
    """
    return {"views", "infomax"} <= set(trains_on)


def best_share(scored: Sequence[ScoredShare]) -> ScoredShare:
    """The one with the highest score; of equals the one that is nearest the start."""
    return max(scored, key=lambda each: (each.score, -each.share))


def score_shares(
    shares: Sequence[float],
    use: Callable[[float], None],
    predict: Predict,
    judge: Predict | None,
    images: Sequence[Tensor],
    *,
    trains_on: Collection[str],
) -> list[ScoredShare]:
    """Score every share, two passes per image.

    Args:
        shares: Those to try.
        use: Makes `predict` that of a share.
        predict: Images (1, 3, H, W) and a size → probabilities (1, C, *size) over the scored classes.
        judge: The same of the second judge, where `needs_judge`.
        images: (1, 3, H, W) each.
        trains_on: As in `Method.optimises`.
    """
    judged = [top_label(judge(image, _size(image)))[1] for image in images] if judge else None
    rows = []
    for share in shares:
        use(share)
        rows.append(_look(share, predict, images, judged, trains_on))
    return rows


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _look(
    share: float,
    predict: Predict,
    images: Sequence[Tensor],
    judged: Sequence[Tensor] | None,
    trains_on: Collection[str],
) -> ScoredShare:
    labels, agreements, sums = [], [], []
    for image in images:
        probabilities = predict(image, _size(image))
        labels.append(top_label(probabilities)[1])
        mirrored = top_label(predict(image.flip(-1), _size(image)).flip(-1))[1]
        agreements.append(_same(labels[-1], mirrored))
        sums.append(score_sums(probabilities))
    # Not by a metric of torchmetrics, which would wait for processes that are not here.
    total = {name: torch.stack([each[name] for each in sums]).sum(0) for name in sums[0]}
    infomax, agreement = float(label_free_scores(total)["infomax"]), sum(agreements) / len(images)
    if judged is not None:
        score = sum(map(_same, labels, judged)) / len(images)
        return ScoredShare(share, agreement, infomax, score, score)
    terms = {"views": agreement, "infomax": infomax / math.log(max(len(total["probabilities"]), 2))}
    score = sum(value for name, value in terms.items() if name not in trains_on)
    return ScoredShare(share, agreement, infomax, None, score)


def _same(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())
