"""How `sfda data check` prints what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfda.data.formats import ORIENTATIONS
from sfda.data.label_spaces import IGNORE
from sfda.data.readers import train_ids_suspected

if TYPE_CHECKING:
    from sfda.cli.data_check import Findings, SplitReport


def print_tables(reports: Sequence[SplitReport], console: Console) -> None:
    """Print counts and sizes a split, classes a class set, and what is worth a remark."""
    table = Table("split", box=SIMPLE_HEAD)
    for heading in ("images", "labelled", "good", "bad"):
        table.add_column(heading, justify="right")
    table.add_column("height x width")
    for report in reports:
        found, total = report.found, len(report.pairs)
        counts = (total, found.labelled, total - found.bad, found.bad)
        table.add_row(str(report), *map(str, counts), _sizes(found.sizes))
    console.print(table)
    by_classes: dict[tuple[str, ...], list[SplitReport]] = {}
    for report in reports:
        if report.found.pixels.any():
            by_classes.setdefault(report.classes.names, []).append(report)
    for group in by_classes.values():
        console.print(_class_table(group))
    for report in reports:
        if report.needs_no_images:
            console.print(
                f"{report}: no images (fine: a method that reads no labels is then watched and scored on the training "
                "images; every other method, and scoring by labels, needs some)",
                soft_wrap=True,
            )
        if report.needs_no_labels:
            console.print(f"{report}: no labels (fine: adapting needs none; scoring does)")
        for remark in _remarks(report):
            console.print(Text(f"{report}: {remark}", style="yellow"), soft_wrap=True)


def _remarks(report: SplitReport) -> Iterator[str]:
    if report.other_files:
        yield report.other_files
    if turned := report.found.turned:
        kinds = sorted(Counter(orientation for orientation, _ in turned).items())
        counts = ", ".join(f"{orientation} ({ORIENTATIONS[orientation]}): {count}" for orientation, count in kinds)
        yield (
            f"images with an EXIF orientation, {counts}; for example {turned[0][1]}. They are read as viewers show "
            "them: their labels must be drawn on the turned image, not on the stored pixels"
        )
    if suspicion := train_ids_suspected(report.domain, report.found.values):
        yield suspicion
    names = [name for name, count in zip(report.classes.names, report.found.images, strict=False) if not count]
    if names and report.found.pixels.any():
        yield f"never occurs {', '.join(names)}"


def _sizes(sizes: Counter[tuple[int, ...]]) -> str:
    if len(sizes) < 2:
        return "".join(f"{height}x{width}" for height, width in sizes)
    heights, widths = zip(*sizes, strict=True)
    (height, width), count = sizes.most_common(1)[0]
    extremes = f"{min(heights)}x{min(widths)}..{max(heights)}x{max(widths)}"
    return f"{extremes}, most often {height}x{width} ({count})"


def _class_table(reports: Sequence[SplitReport]) -> Table:
    classes = reports[0].classes
    caption = "share of the labelled pixels; of all pixels for (ignored). In brackets: images"
    table = Table("class", box=SIMPLE_HEAD, caption=caption)
    for report in reports:
        table.add_column(str(report), justify="right")
    for index, (name, (red, green, blue)) in enumerate(zip(classes.names, classes.colours, strict=True)):
        cells = [_cell(report.found, index, slice(len(classes))) for report in reports]
        table.add_row(Text.assemble(("■ ", f"rgb({red},{green},{blue})"), name), *cells)
    table.add_section()
    table.add_row("(ignored)", *(_cell(report.found, IGNORE, slice(None)) for report in reports), style="dim")
    return table


def _cell(found: Findings, index: int, among: slice) -> str:
    share = found.pixels[index] / max(1, found.pixels[among].sum())
    return f"{100 * share:.2f}% ({found.images[index]})" if found.images[index] else "–"


def merged_faults(reports: Sequence[SplitReport]) -> list[str]:
    """One line a fault; what is wrong with both splits of a domain (its root, say) is said once."""
    splits: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        for fault in report.found.faults:
            splits.setdefault((report.name, " ".join(fault.split())), []).append(report.split)
    return [f"{name} {' and '.join(dict.fromkeys(where))}: {fault}" for (name, fault), where in splits.items()]
