"""Better, worse, or cannot tell: from evidence without labels, or from labels.

What the rule without labels rests on, and how often it is right, says ``docs/measured.md``.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np

from sfda.judging.bootstrap import Interval, mean_iou, paired_interval
from sfda.judging.evidence import Evidence

Word = Literal["better", "cannot tell", "worse"]

CLEAR = 2.0
"""Standard errors of the mean over images that InfoMax changes by at least."""
LEAST_NATS = 0.05
"""InfoMax, in nats, that a difference is at least."""
LESS_COVERAGE = 0.85
"""Of the source's class coverage: with less than this a model is not called better."""
LOST = 0.7
"""Of the source's class coverage or InfoMax: with less than this, classes or InfoMax are lost."""
SAME = 0.999
"""Share of the pixels with the source's class: with more than this no score of classes can differ much."""


class Verdict(NamedTuple):
    """What to think of a model, and why, in words."""

    word: Word
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        word = self.word if self.word == "cannot tell" else f"{self.word} than the source"
        return f"{word} ({'; '.join(self.reasons)})"


def judge_without_labels(
    source: Evidence, adapted: Evidence, judge: Evidence, *, trains_on: Collection[str] = ()
) -> Verdict:
    """Whether a model is better than its source, as far as unlabelled images tell.

    Two witnesses are heard: InfoMax, and the mIoU of both models against the classes of the second judge, as if those
    were labels. Better: one of them rises clearly and the other does not fall. The second judge is not heard against a
    model whose InfoMax clearly surpasses its own: that one may know more. Worse: both fall, most of InfoMax is lost, or
    classes are lost and one of them falls. Otherwise nobody can tell without labels.

    Agreement between views or under perturbations is no witness: of models that had gained and models that had lost,
    it rose in as many.

    Args:
        source: Of the source model.
        adapted: Of the other one, on the same images.
        judge: Of the second judge, on the same images.
        trains_on: Scores that it optimises; where ``infomax`` is among them, InfoMax may speak against it alone.
    """
    if adapted.kept.mean() > SAME:
        return Verdict("cannot tell", (f"{100 * adapted.kept.mean():.1f} % of the pixels keep the source's class",))
    infomax, judged = _infomax_vote(source, adapted), _judge_vote(source, adapted)
    trained_on = "infomax" in trains_on
    surpasses = not trained_on and infomax > 0 and adapted.infomax - judge.infomax > LEAST_NATS
    reasons = _reasons(infomax, judged, source, adapted, judge if surpasses else None)
    fewer = _fewer_classes(source, adapted)
    falls = (infomax < 0) + (judged < 0 and not surpasses)
    if falls + (adapted.coverage < LOST * source.coverage) > 1 or adapted.infomax < LOST * source.infomax:
        return Verdict("worse", (*fewer, *reasons))
    rises = judged > 0 or (infomax > 0 and not trained_on)
    if rises and not falls and not fewer:
        return Verdict("better", reasons)
    return Verdict("cannot tell", (*fewer, *(reasons or ("no score changes clearly",))))


def _infomax_vote(source: Evidence, adapted: Evidence) -> int:
    difference = adapted.information - source.information
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return int(np.sign(mean)) if abs(mean) >= max(CLEAR * error, LEAST_NATS) else 0


def _judge_vote(source: Evidence, adapted: Evidence) -> int:
    if len(source.kept) < 2:
        return 0
    interval = paired_interval(source.against, adapted.against)
    return 0 if interval.includes_zero else int(np.sign(interval.difference))


def _reasons(
    infomax: int, judged: int, source: Evidence, adapted: Evidence, surpassed: Evidence | None
) -> tuple[str, ...]:
    found = []
    if infomax:
        values = f"{source.infomax:.2f} to {adapted.infomax:.2f} nats"
        found.append(f"InfoMax {_moves(infomax)} from {values}")
    if judged:
        before, after = (100 * float(mean_iou(each.against.sum(0))) for each in (source, adapted))
        text = f"mIoU against the second judge's classes {_moves(judged)} from {before:.1f} to {after:.1f} %"
        if surpassed and judged < 0:
            text += f", but that judge has less InfoMax itself, {surpassed.infomax:.2f}"
        found.append(text)
    return tuple(found)


def _moves(vote: int) -> str:
    return "rises" if vote > 0 else "falls"


def _fewer_classes(source: Evidence, adapted: Evidence) -> tuple[str, ...]:
    if adapted.coverage >= LESS_COVERAGE * source.coverage:
        return ()
    return (f"class coverage falls from {source.coverage:.2f} to {adapted.coverage:.2f}",)


def judge_with_labels(interval: Interval, images: int) -> Verdict:
    """Whether a model is better than its source, by a paired interval of labelled images."""
    low, high = 100 * interval.low, 100 * interval.high
    text = f"{100 * interval.difference:+.1f} mIoU on {images} labelled images, 95 % interval {low:+.1f} to {high:+.1f}"
    if interval.includes_zero:
        return Verdict("cannot tell", (f"{text}, which includes zero: label more images",))
    return Verdict("better" if interval.low > 0 else "worse", (text,))
