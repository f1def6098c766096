"""Better, worse, or cannot tell: from evidence without labels, or from labels.

The limits below were set by hand on few fits, and have not been validated on others: without labels a verdict is a
hint.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np

from sfda.judging.bootstrap import Interval
from sfda.judging.evidence import Evidence, Values

Word = Literal["better", "cannot tell", "worse"]

SIGNALS = {
    "views": "agreement between views",
    "perturbed": "agreement under perturbations",
    "judged": "agreement with the second judge",
}
"""What speaks for or against a model, image by image."""
CLEAR = 2.0
"""Standard errors of the mean over images that a difference has at least."""
LEAST = 0.005
"""Share of the pixels that a difference is at least."""
LESS_COVERAGE, LESS_INFOMAX, MORE_DRIFT = 0.9, 0.95, 0.05
"""What a better model keeps of the source's class coverage and InfoMax at least, and how much farther its classes'
shares lie from the second judge's at most."""
LOST = 0.7
"""Of the source's class coverage or InfoMax: with less than this a model has collapsed."""


class Verdict(NamedTuple):
    """What to think of a model, and why, in words."""

    word: Word
    reasons: tuple[str, ...]


def judge_without_labels(source: Evidence, adapted: Evidence, trains_on: Collection[str] = ()) -> Verdict:
    """Whether a model is better than its source, as far as unlabelled images tell.

    Better: at least two of the `SIGNALS` rise clearly, none falls, and nothing was lost. Worse: classes or InfoMax were
    lost, or two signals fall clearly. Otherwise nobody can tell without labels.

    Args:
        source: Of the source model.
        adapted: Of the other one, on the same images.
        trains_on: Signals that the method optimises: they say nothing about it, and are left out.
    """
    votes = {name: _vote(getattr(source, name), getattr(adapted, name)) for name in SIGNALS if name not in trains_on}
    reasons = [
        f"{SIGNALS[name]} {'rises' if vote > 0 else 'falls'} from {_percent(getattr(source, name))} to "
        f"{_percent(getattr(adapted, name))}"
        for name, vote in votes.items()
        if vote
    ]
    lost, objections = _losses(source, adapted)
    if lost or sum(vote < 0 for vote in votes.values()) >= 2:
        return Verdict("worse", (*lost, *reasons))
    if sum(vote > 0 for vote in votes.values()) >= 2 and not objections and min(votes.values()) >= 0:
        return Verdict("better", tuple(reasons))
    return Verdict("cannot tell", (*objections, *(reasons or ["no signal changes clearly"])))


def _vote(source: Values, adapted: Values) -> int:
    difference = adapted - source
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return int(np.sign(mean)) if abs(mean) >= max(CLEAR * error, LEAST) else 0


def _losses(source: Evidence, adapted: Evidence) -> tuple[list[str], list[str]]:
    """What speaks for a collapse, and what against calling a model better."""
    lost, objections = [], []
    for name, share, before, after in (
        ("class coverage", LESS_COVERAGE, source.coverage, adapted.coverage),
        ("InfoMax", LESS_INFOMAX, source.infomax, adapted.infomax),
    ):
        text = f"{name} falls from {before:.2f} to {after:.2f}"
        if after < LOST * before:
            lost.append(text)
        elif after < share * before:
            objections.append(text)
    if adapted.drift > source.drift + MORE_DRIFT:
        objections.append(
            f"the classes' shares lie {100 * adapted.drift:.0f} % from the second judge's, the source model's "
            f"{100 * source.drift:.0f} %"
        )
    return lost, objections


def judge_with_labels(interval: Interval, images: int) -> Verdict:
    """Whether a model is better than its source, by a paired interval of labelled images."""
    low, high = 100 * interval.low, 100 * interval.high
    text = f"{100 * interval.difference:+.1f} mIoU on {images} labelled images, 95 % interval {low:+.1f} to {high:+.1f}"
    if interval.includes_zero:
        return Verdict("cannot tell", (f"{text}, which includes zero: label more images",))
    return Verdict("better" if interval.low > 0 else "worse", (text,))


def _percent(values: Values) -> str:
    return f"{100 * float(values.mean()):.1f} %"
