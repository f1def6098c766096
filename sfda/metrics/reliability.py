"""The reliability diagram: accuracy against confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability_diagram(count: Tensor, confidence: Tensor, accuracy: Tensor) -> Figure:
    """Accuracy of every confidence bin, its gap to the mean confidence, and the share of pixels below.

    All are (M,), of M equal-width bins on (0, 1]: pixels, mean confidence and share of correct pixels, the last two NaN
    in empty bins. The figure is part of no global state.
    """
    from matplotlib.figure import Figure

    share = (count / count.sum()).cpu().numpy()
    confidence, accuracy = confidence.nan_to_num(0).cpu(), accuracy.nan_to_num(0).cpu()
    gap = (confidence - accuracy).numpy()
    ece = float((share * abs(gap)).sum())
    width = 1 / len(share)
    left = [m * width for m in range(len(share))]
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bar = {"width": width, "align": "edge", "edgecolor": "black", "linewidth": 0.5}
    top.bar(left, accuracy.numpy(), color="tab:blue", label="accuracy", **bar)
    outline = {**bar, "edgecolor": "tab:red", "linewidth": 1.0}
    top.bar(left, gap, bottom=accuracy.numpy(), facecolor="none", hatch="//", label="gap to confidence", **outline)
    top.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"ECE {100 * ece:.2f} %")
    top.legend(loc="upper left", frameon=False)
    bottom.bar(left, share, color="tab:grey", **bar)
    bottom.set(xlabel="confidence", ylabel="share of pixels")
    return figure
