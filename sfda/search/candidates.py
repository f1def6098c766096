"""What is tried, how it is scored without a label, and how one of several is chosen. Imports no torch."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    """A way to use a network without training it; the defaults are the source model as it is.

    Attributes:
        scale: Factor on the size of the images.
        alpha: Share of the target's BatchNorm statistics, in [0, 1]; see `sfda.methods.ada_bn.AdaBN`.
        colours: How far colours are brought to what the first layers know, in [0, 1]; see
            `sfda.networks.input_correction`.
    """

    scale: float = 1.0
    alpha: float = 0.0
    colours: float = 0.0

    def __str__(self) -> str:
        parts = [f"size x {self.scale:g}"]
        if self.alpha:
            parts.append(f"α {self.alpha:g}")
        if self.colours:
            parts.append(f"colours {100 * self.colours:g} %")
        return ", ".join(parts)


SOURCE = Candidate()


@dataclass(frozen=True)
class Scored:
    """A candidate and what is known of it without a label.

    Attributes:
        candidate: What was tried.
        agreement: Share of pixels that have one and the same class in an image and its mirror image, in [0, 1].
        infomax: H(mean p) − mean H(p) over the scored classes, in nats.
        classes: How many classes are scored.
        seconds: How long it took.
    """

    candidate: Candidate
    agreement: float
    infomax: float
    classes: int
    seconds: float

    @property
    def score(self) -> float:
        """Agreement + InfoMax / ln C, in [0, 2], higher is better.

        Each is blind where the other sees: InfoMax rewards confidence in whatever an image is blown up to, agreement
        rewards seeing little. As values rather than ranks, so that it does not depend on what else was tried.
        """
        return self.agreement + self.infomax / math.log(max(self.classes, 2))

    def as_dict(self) -> dict[str, Any]:
        """As ``auto.json`` has it."""
        return {**self.candidate._asdict(), **asdict(self), "score": self.score, "candidate": str(self.candidate)}
