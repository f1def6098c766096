"""What a search has found, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from sfda.files import write_figure
from sfda.search.search import Decision

HEAD = ("step", "candidate", "agree %", "InfoMax", "score", "s")


def search_table(decisions: Sequence[Decision]) -> str:
    """All candidates by step, the best of each step so far with an asterisk; ends in a newline."""
    rows = [HEAD, *(row for decision in decisions for row in _rows(decision))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "".join(_line(row, widths) for row in rows)


def _rows(decision: Decision) -> list[tuple[str, ...]]:
    return [
        (
            decision.step if number == 0 else "",
            f"{each.candidate}{' *' if each is decision.chosen else ''}",
            f"{100 * each.agreement:.1f}",
            f"{each.infomax:.3f}",
            f"{each.score:.4f}",
            f"{each.seconds:.1f}",
        )
        for number, each in enumerate(decision.scored)
    ]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join([*texts, *numbers]).rstrip() + "\n"


def draw_search(decisions: Sequence[Decision], path: Path) -> None:
    """The score of every candidate and the two that it is made of, from the first tried on; what was chosen in red."""
    from matplotlib.figure import Figure

    scored = [each for decision in decisions for each in decision.scored]
    chosen = decisions[-1].chosen
    panels = {
        "agreement of image\nand mirror image": [each.agreement for each in scored],
        "InfoMax / ln C": [each.score - each.agreement for each in scored],
        "score: their sum": [each.score for each in scored],
    }
    colours = ["tab:red" if each is chosen else "tab:blue" for each in scored]
    figure = Figure(figsize=(9, 0.28 * len(scored) + 1.5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.scatter(values, range(len(scored)), c=colours)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(scored)), [str(each.candidate) for each in scored])
    axes[0].invert_yaxis()
    write_figure(path, figure, dpi=110)
