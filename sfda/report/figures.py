"""The figures of a report, as SVG that takes the page's colours."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfda.report.entries import Entry, Findings
from sfda.runs.image_records import Values

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999", "#8C6D1F")
"""Of Okabe and Ito, told apart by colour-blind people on white and on black."""
MARKERS = "osD^vPX*"
INK = "#010203"
"""What is drawn in this colour takes that of the page's text."""
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
BINS = 15


def draw(paint: Callable[[Axes], None], size: tuple[float, float] = (5.4, 3.8)) -> str:
    """An SVG element of one pair of axes.

    Args:
        paint: Draws into them.
        size: Width and height in inches.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.patch.set_visible(False)
        paint(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def draw_reliability(entries: Sequence[Entry]) -> str | None:
    """Accuracy against confidence, of the bins of the ECE that hold at least one pixel in a thousand."""
    known = [(number, entry.name, entry.bins) for number, entry in enumerate(entries) if entry.bins is not None]

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
        for number, name, bins in known:
            count, confidence, correct = bins.reshape(3, BINS, -1).sum(-1)
            full = count > count.sum() / 1000
            axes.plot(confidence[full] / count[full], correct[full] / count[full], label=name, **_style(number))
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        _legend(axes)

    return draw(paint) if known else None


def risk_coverage(bins: Values) -> tuple[Values, Values]:
    """Share of the pixels that are kept, the most confident first, and the share of errors among them: (M,) each."""
    count, _, correct = bins[:, ::-1].cumsum(axis=1)
    kept = count > 0
    return count[kept] / count[-1], 1 - correct[kept] / count[kept]


def draw_risk_coverage(entries: Sequence[Entry]) -> str | None:
    """How many of the pixels are wrong where only the most confident ones are kept."""
    known = [(number, entry.name, entry.bins) for number, entry in enumerate(entries) if entry.bins is not None]

    def paint(axes: Axes) -> None:
        for number, name, bins in known:
            coverage, risk = risk_coverage(bins)
            axes.plot(100 * coverage, 100 * risk, label=name, markevery=0.15, **_style(number))
        axes.set(xlabel="pixels kept, most confident first (%)", ylabel="errors among them (%)", xlim=(0, 100))
        axes.set_ylim(bottom=0)
        _legend(axes)

    return draw(paint) if known else None


def draw_class_mass(findings: Findings) -> str | None:
    """Share of the pixels that each entry gives to each class."""
    known = [(number, entry, entry.mass) for number, entry in enumerate(findings.entries) if entry.mass is not None]
    names = list(findings.classes)

    def paint(axes: Axes) -> None:
        place = np.arange(len(names))
        for number, entry, mass in known:
            axes.plot(100 * mass, place, linestyle="none", label=entry.name, **_style(number))
        axes.set_yticks(place, names)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xlim(left=0)
        axes.set_xlabel("predicted pixels (%)")
        axes.grid(axis="y", color=INK, alpha=0.15)
        _legend(axes)

    return draw(paint, (5.4, max(3.0, 0.3 * len(names) + 1))) if known else None


def draw_cost(findings: Findings) -> str | None:
    """Gain against the seconds of the fit."""
    if findings.source is None or (before := findings.source.mean("target_miou")) is None:
        return None
    costs = ((entry, entry.mean("adapt_seconds"), entry.mean("target_miou")) for entry in findings.entries)
    known = [
        (number, entry, seconds, miou - before)
        for number, (entry, seconds, miou) in enumerate(costs)
        if seconds and miou is not None
    ]

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=1, linestyle=":")
        for number, entry, seconds, gain in known:
            axes.plot(seconds, 100 * gain, linestyle="none", label=entry.name, **_style(number))
        axes.set(xlabel="fit (s)", ylabel="mIoU over the source")
        axes.set_xlim(left=0)
        _legend(axes)

    return draw(paint) if known else None


def draw_selection(report: dict[str, Any]) -> str | None:
    """What each selector saw over a fit, scaled to its own range, and what it chose.

    Args:
        report: Content of ``selection.json``.
    """
    selectors = [each for each in (report, *_list(report.get("others"))) if _curve(each)]

    def paint(axes: Axes) -> None:
        for number, each in enumerate(selectors):
            epochs, values = zip(*_curve(each), strict=True)
            low, span = min(values), (max(values) - min(values)) or 1.0
            scaled = [(value - low) / span for value in values]
            sign = "↓" if each["mode"] == "min" else "↑"
            axes.plot(epochs, scaled, label=f"{each['selected_by']} {sign}", **_style(number))
            if each["selected"]:
                chosen = epochs.index(each["selected"]["epoch"])
                axes.plot(epochs[chosen], scaled[chosen], "o", markersize=12, fillstyle="none", color=INK)
        axes.set(xlabel="epoch", ylabel="lowest to highest")
        _legend(axes)

    return draw(paint) if any(len(_curve(each)) > 1 for each in selectors) else None


def _curve(report: dict[str, Any]) -> list[tuple[int, float]]:
    candidates = _list(report.get("candidates"))
    return [(int(each["epoch"]), float(each["value"])) for each in candidates if each.get("value") is not None]


def _list(value: Any) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else []
