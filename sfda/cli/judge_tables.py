"""What ``sfda judge`` prints."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from sfda.judging.bootstrap import Confusions, Interval, mean_iou
from sfda.judging.evidence import Evidence
from sfda.judging.verdict import Verdict


def unlabelled_table(evidence: Mapping[str, Evidence]) -> Table:
    """What is known without labels, a row per model."""
    against = "mIoU against\nthe judge %"
    table = _table("InfoMax\nnats", against, "agrees\n%", "classes\nseen %", "drift\n%", "changed\n%")
    for name, each in evidence.items():
        against = f"{100 * float(mean_iou(each.against.sum(0))):.1f}"
        shares = (each.judged, each.coverage, each.drift, 1 - each.kept.mean())
        table.add_row(name, f"{each.infomax:.3f}", against, *(f"{100 * value:.0f}" for value in shares))
    return table


def labelled_table(confusions: Mapping[str, Confusions], intervals: Mapping[str, Interval]) -> Table:
    """The mIoU, a row per model, and how far from the source model's it lies."""
    table = _table("mIoU\n%", "to the\nsource", "95 %\ninterval")
    for name, each in confusions.items():
        row = [name, f"{100 * float(mean_iou(each.sum(0))):.1f}"]
        if name in intervals:
            difference, low, high = (f"{100 * value:+.1f}" for value in intervals[name])
            row += [difference, f"{low} … {high}"]
        table.add_row(*row)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold", min_width=12, vertical="bottom")
    for heading in headings:
        table.add_column(heading, justify="right", vertical="bottom")
    return table


def describe(name: str, verdict: Verdict) -> Text:
    """The verdict on a run, in one line."""
    colour = {"better": "green", "worse": "red"}.get(verdict.word, "yellow")
    head, reasons = str(verdict).split(" (", 1)
    return Text.assemble((f"{name}: {head}", colour), f" ({reasons}")
