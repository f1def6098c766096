"""How good an estimate of the images' calibration errors is."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sfda.metrics.view_agreement import ranks
from sfda.ranks import sum_over_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Linear correlation of (N,) and (N,) in [-1, 1]; NaN for fewer than two pairs, or if one of them is constant."""
    # Without its first value a constant is exactly 0, its mean too; the mean alone would leave rounding errors.
    one, other = (values - values[:1] for values in (one, other))
    one, other = (values - values.mean() for values in (one, other))
    correlation: Tensor = (one @ other) / (one.norm() * other.norm())
    return correlation.clamp(-1, 1)


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Rank correlation of (N,) and (N,), equal values sharing the mean of their ranks; NaN as `pearson`."""
    return pearson(ranks(one).double(), ranks(other).double())


class EceEstimateQuality(Metric):
    """Estimated against true calibration errors of all images on all processes, of which it keeps two numbers each.

    Args:
        with_labels: False where there is no truth: the mean estimate only.
    """

    full_state_update = False
    estimates: list[Tensor]
    truths: list[Tensor]

    def __init__(self, *, with_labels: bool = True) -> None:
        super().__init__()
        self.with_labels = with_labels
        self.set_dtype(torch.float64)  # of what a process without an image contributes
        self.add_state("estimates", [], dist_reduce_fx="cat")
        self.add_state("truths", [], dist_reduce_fx="cat")

    def update(self, estimates: Tensor, truths: Tensor | None = None) -> None:
        """Add images: estimates and truths (B,) in [0, 1], NaN where the true error is not known, None if none is."""
        if truths is None or not self.with_labels:
            truths = torch.full_like(estimates, torch.nan)
        self.estimates.append(estimates.detach().double())
        self.truths.append(truths.detach().double())

    def compute(self) -> dict[str, Tensor]:
        """Scores by name, float64 scalars, NaN where undefined.

        ``estimated_ece`` is the mean estimate over all images. With labels, over the images whose error is known:
        ``true_ece``, its mean, ``mae``, the mean of |estimate − truth|, ``pearson`` and ``spearman``.
        """
        estimates, truths = self._all()
        scores = {"estimated_ece": estimates.mean()}
        if not self.with_labels:
            return scores
        known = ~truths.isnan()
        estimates, truths = estimates[known], truths[known]
        return scores | {
            "true_ece": truths.mean(),
            "mae": (estimates - truths).abs().mean(),
            "pearson": pearson(estimates, truths),
            "spearman": spearman(estimates, truths),
        }

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Estimates and truths (NaN: not known), each (N,) float64, in the order of the processes; called on all."""
        with self.sync_context():
            return self._all()

    def _all(self) -> tuple[Tensor, Tensor]:
        if len(self.estimates):
            return dim_zero_cat(self.estimates), dim_zero_cat(self.truths)
        nothing = torch.zeros(0, dtype=torch.float64, device=self.device)
        return nothing, nothing


class FirstAndLast:
    """Mean estimates over the first and the last `steps` of a fit, and the mean truth over the last ones."""

    def __init__(self, steps: int = 10) -> None:
        self.steps = steps
        self.first: list[Tensor] = []
        """One tensor (3,) float64 per step: sum of the estimates, of the truths, number of images."""
        self.last: deque[Tensor] = deque(maxlen=steps)

    def add(self, estimates: Tensor, truths: Tensor, known: Tensor) -> None:
        """The images of a step: estimates and truths (B,), and whose truth is known, (B,) bool."""
        pairs = torch.stack([estimates.detach(), truths, torch.ones_like(truths)]).double()
        self.last.append(torch.where(known, pairs, 0).sum(1))
        if len(self.first) < self.steps:
            self.first.append(self.last[-1])

    def means(self) -> tuple[float, float, float]:
        """First and last mean estimate, and last mean truth; NaN without an image. All processes call it together."""
        if not self.last:
            return math.nan, math.nan, math.nan
        device = self.last[-1].device
        first, last = (torch.stack([row.to(device) for row in rows]).sum(0) for rows in (self.first, self.last))
        estimate, _, images, end, truth, images_at_end = sum_over_ranks(torch.cat([first, last])).tolist()
        if not images or not images_at_end:
            return math.nan, math.nan, math.nan
        return estimate / images, end / images_at_end, truth / images_at_end


def estimate_scatter(estimates: Tensor, truths: Tensor, scores: Mapping[str, float]) -> Figure:
    """True against estimated calibration error (N,), NaN where not known: a dot per image, with the diagonal.

    The title gives the `scores` ``pearson``, ``spearman`` and ``mae``. The figure is part of no global state.
    """
    from matplotlib.figure import Figure

    known = ~truths.isnan()
    figure = Figure(figsize=(4.5, 4.8), layout="constrained")
    axis = figure.subplots()
    axis.scatter(estimates[known].cpu().numpy(), truths[known].cpu().numpy(), s=12, alpha=0.6)
    end = 1.05 * float(torch.cat([estimates[known], truths[known], truths.new_full((1,), 0.01)]).max())
    axis.plot([0, end], [0, end], color="grey", linestyle="--", linewidth=1)
    axis.set(xlabel="estimated ECE of an image", ylabel="true ECE", xlim=(0, end), ylim=(0, end), aspect="equal")
    axis.set_title(
        f"Pearson {scores['pearson']:.2f}, Spearman {scores['spearman']:.2f}, MAE {scores['mae']:.3f}\n"
        f"{int(known.sum())} images",
        fontsize=10,
    )
    return figure
