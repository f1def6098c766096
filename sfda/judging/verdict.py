"""Better, worse, or cannot tell: from evidence without labels, or from labels.

What the rule without labels rests on, and how often it is right, says the README. Its limits were set on 44 variants of
two published networks on one set of photographs.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np

from sfda.judging.bootstrap import Interval
from sfda.judging.evidence import Evidence, Values

Word = Literal["better", "cannot tell", "worse"]

CLEAR = 2.0
"""Standard errors of the mean over images that a difference has at least."""
SHARES = {
    "views": "agreement between views",
    "perturbed": "agreement under perturbations",
    "judged": "agreement with the second judge",
}
LEAST_SHARE, LEAST_NATS = 0.005, 0.05
"""Share of the pixels, and InfoMax in nats, that a difference is at least."""
LESS_COVERAGE = 0.85
"""Of the source's class coverage: with less than this a model is not called better."""
LOST = 0.7
"""Of the source's class coverage or InfoMax: with less than this a model has collapsed."""
DRIFT, FAR_DRIFT = 0.05, 0.3
"""How much farther than the source's the classes' shares of a trained model lie from the second judge's: less than this
where it is called better, more than that where it has left its source behind."""
SAME = 0.999
"""Share of the pixels with the source's class: with more than this no score of classes can differ much."""
KEPT = 0.35
"""Share of the pixels with the source's class: with less than this, too."""


class Verdict(NamedTuple):
    """What to think of a model, and why, in words."""

    word: Word
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        word = self.word if self.word == "cannot tell" else f"{self.word} than the source"
        return f"{word} ({'; '.join(self.reasons)})"


def judge_without_labels(
    source: Evidence, adapted: Evidence, *, trained: bool, trains_on: Collection[str] = ()
) -> Verdict:
    """Whether a model is better than its source, as far as unlabelled images tell.

    Better: InfoMax rises clearly, agreement between views does not fall, and no class is lost; of a model that was
    trained, the second judge agrees no less than with the source, and the classes' shares do not drift away from its.
    Agreement alone says nothing: whatever trains on its own predictions agrees with itself more, and the more the
    nearer it is to collapse. Worse: classes or InfoMax are lost; the second judge agrees less while the classes drift
    and InfoMax falls; or a trained model has left its source behind and InfoMax has not risen. Otherwise nobody can
    tell without labels.

    Args:
        source: Of the source model.
        adapted: Of the other one, on the same images.
        trained: Whether it followed a gradient; new BatchNorm statistics alone drift without harm.
        trains_on: Scores that it optimises, ``infomax`` or names of `SHARES`: they say nothing for it.
    """
    if adapted.kept.mean() > SAME:
        return Verdict("cannot tell", (f"{100 * adapted.kept.mean():.1f} % of the pixels keep the source's class",))
    votes = {name: _vote(getattr(source, name), getattr(adapted, name), LEAST_SHARE) for name in SHARES}
    votes["infomax"] = _vote(source.information, adapted.information, LEAST_NATS)
    rises = votes["infomax"] > 0
    votes = {name: min(vote, 0) if name in trains_on else vote for name, vote in votes.items()}
    drift = adapted.drift - source.drift
    reasons = _reasons(votes, source, adapted)
    lost = _lost(source, adapted, LOST)
    # Where InfoMax rises, the source may be what was lost: six of 49 fits on photographs had gained 16 to 31 mIoU so.
    left_behind = trained and adapted.kept.mean() < KEPT and drift > FAR_DRIFT and not rises
    if lost or left_behind or (votes["judged"] < 0 and drift > DRIFT and votes["infomax"] < 0):
        return Verdict("worse", (*lost, *([_away(source, adapted)] if left_behind else []), *reasons))
    objections = [] if adapted.coverage >= LESS_COVERAGE * source.coverage else _lost(source, adapted, 1.0)[:1]
    if trained and drift > DRIFT:
        objections.append(_away(source, adapted))
    against = votes["views"] < 0 or (trained and votes["judged"] < 0)
    if votes["infomax"] > 0 and not objections and not against:
        return Verdict("better", reasons)
    return Verdict("cannot tell", (*objections, *(reasons or ("no score changes clearly",))))


def _vote(source: Values, adapted: Values, least: float) -> int:
    difference = adapted - source
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return int(np.sign(mean)) if abs(mean) >= max(CLEAR * error, least) else 0


def _reasons(votes: dict[str, int], source: Evidence, adapted: Evidence) -> tuple[str, ...]:
    found = []
    for name, vote in votes.items():
        if vote and name == "infomax":
            values = f"{source.infomax:.2f} to {adapted.infomax:.2f} nats"
            found.append(f"InfoMax {'rises' if vote > 0 else 'falls'} from {values}")
        elif vote:
            values = f"{100 * getattr(source, name).mean():.1f} to {100 * getattr(adapted, name).mean():.1f} %"
            found.append(f"{SHARES[name]} {'rises' if vote > 0 else 'falls'} from {values}")
    return tuple(found)


def _lost(source: Evidence, adapted: Evidence, share: float) -> list[str]:
    """Scores of which less than a share is left."""
    return [
        f"{name} falls from {before:.2f} to {after:.2f}"
        for name, before, after in (
            ("class coverage", source.coverage, adapted.coverage),
            ("InfoMax", source.infomax, adapted.infomax),
        )
        if after < share * before
    ]


def _away(source: Evidence, adapted: Evidence) -> str:
    ours, theirs = (f"{100 * each.drift:.0f} %" for each in (adapted, source))
    kept = f"{100 * adapted.kept.mean():.0f} % of the pixels have the source's class"
    return f"the classes' shares lie {ours} from the second judge's, the source model's {theirs}, and {kept}"


def judge_with_labels(interval: Interval, images: int) -> Verdict:
    """Whether a model is better than its source, by a paired interval of labelled images."""
    low, high = 100 * interval.low, 100 * interval.high
    text = f"{100 * interval.difference:+.1f} mIoU on {images} labelled images, 95 % interval {low:+.1f} to {high:+.1f}"
    if interval.includes_zero:
        return Verdict("cannot tell", (f"{text}, which includes zero: label more images",))
    return Verdict("better" if interval.low > 0 else "worse", (text,))
