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
    """The score of every candidate, and the two that it is made of; what was chosen in red."""
    from matplotlib.figure import Figure

    scored = [each for decision in decisions for each in decision.scored]
    chosen = decisions[-1].chosen
    figure = Figure(figsize=(8, 0.28 * len(scored) + 1.5), layout="constrained")
    axis = figure.subplots()
    position = range(len(scored))
    agreement = [each.agreement for each in scored]
    axis.barh(position, agreement, color="tab:blue", label="agreement of image and mirror image")
    rest = [each.score - each.agreement for each in scored]
    axis.barh(position, rest, left=agreement, color="tab:orange", label="InfoMax / ln C")
    axis.set_yticks(position, [str(each.candidate) for each in scored])
    for tick, each in zip(axis.get_yticklabels(), scored, strict=True):
        tick.set_color("tab:red" if each is chosen else "black")
    lowest = min(each.score for each in scored)
    axis.set_xlim(max(0.0, lowest - 0.15), max(each.score for each in scored) + 0.02)
    axis.invert_yaxis()
    axis.set_xlabel("score without labels")
    figure.legend(loc="outside upper center", ncols=2)
    write_figure(path, figure, dpi=110)
