"""A search in steps, coarse to fine, each of which goes on from the best that was found. Imports no torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sfda.search.candidates import SOURCE, Candidate, Scored

SCALES = (0.75, 1.0, 1.5)
"""Factors on the size of the images that are tried first."""
COLOURS = (0.5, 1.0)
"""How far colours are corrected."""
FINER_SCALE, FINER_ALPHA = 0.25, 0.25
"""How far from the best of the first ones the next are."""
ALPHAS = (0.0, 0.5, 1.0)
"""Shares of the target's statistics that are tried first."""
LEAST_GAIN = 0.002
"""What a candidate has to score above the best one so far; less than this is chance."""

Score = Callable[[str, Sequence[Candidate]], Sequence[Scored]]
"""What a step is about, and candidates → their scores."""


class Step(NamedTuple):
    """A step of a search.

    Attributes:
        name: What it is about.
        candidates: The best candidate so far → those to try.
    """

    name: str
    candidates: Callable[[Candidate], Sequence[Candidate]]


@dataclass(frozen=True)
class Decision:
    """What came out of a step.

    Attributes:
        step: What it was about.
        scored: What it tried that no step before had tried.
        chosen: The best so far.
        gain: How much more it scores than the best before this step; 0 where that was kept.
    """

    step: str
    scored: tuple[Scored, ...]
    chosen: Scored
    gain: float

    def __str__(self) -> str:
        """The sentence about it."""
        return (
            f"{self.step}: {self.chosen.candidate} scores {self.gain:.3f} more" if self.gain else f"{self.step}: kept"
        )

    def as_dict(self) -> dict[str, Any]:
        """As ``auto.json`` has it."""
        rows = [each.as_dict() for each in self.scored]
        return {"step": self.step, "why": str(self), "chosen": str(self.chosen.candidate), "candidates": rows}


def steps_for(*, has_batch_norm: bool) -> list[Step]:
    """The steps of a search, the most telling first; `has_batch_norm`: whether the network has statistics."""
    finer = [Step("size, finer", _finer_sizes)] * 2
    if not has_batch_norm:
        return [Step("size", lambda _: _sizes((0.0,))), *finer]
    return [
        Step("size and statistics", lambda _: _sizes(ALPHAS)),
        Step("statistics, finer", _alphas),
        *finer,
        Step("colours", lambda best: [best._replace(colours=share) for share in COLOURS]),
    ]


def _sizes(alphas: Sequence[float]) -> list[Candidate]:
    return [Candidate(scale, alpha) for scale in SCALES for alpha in alphas]


def _alphas(best: Candidate) -> list[Candidate]:
    return [best._replace(alpha=alpha) for alpha in _around(best.alpha, FINER_ALPHA) if 0 < alpha <= 1]


def _finer_sizes(best: Candidate) -> list[Candidate]:
    return [best._replace(scale=scale) for scale in _around(best.scale, FINER_SCALE) if scale > 0]


def _around(value: float, step: float) -> list[float]:
    return [value - step, value + step]


def search(steps: Sequence[Step], score: Score) -> Iterator[Decision]:
    """Go through the steps; the source model is scored first, and every candidate once.

    What scores less than `LEAST_GAIN` above the best so far does not replace it, so that what changes nothing, or
    costs the network's own ways for nothing, is left alone.
    """
    best = score("source", [SOURCE])[0]
    yield Decision("source", (best,), best, 0.0)
    known = {SOURCE}
    for step in steps:
        fresh = [candidate for candidate in step.candidates(best.candidate) if candidate not in known]
        if not fresh:
            continue
        known |= set(fresh)
        scored = tuple(score(step.name, fresh))
        found = max((*scored, best), key=lambda each: each.score)
        gain = found.score - best.score
        best, gain = (found, gain) if gain > LEAST_GAIN else (best, 0.0)
        yield Decision(step.name, scored, best, gain)
