"""``report.html``: one file with everything in it, which opens without a network."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sfda import __version__
from sfda.files import write_whole
from sfda.judging.bootstrap import Interval
from sfda.progress import Advance, ShowProgress, no_progress
from sfda.report import figures
from sfda.report.entries import Entry, Findings, gather
from sfda.report.pictures import as_uri, boundary_iou, choose_images, pictures_of, views_of

NAME = "report.html"
PER_CENT, PLAIN = 100.0, 1.0
COLUMNS = (
    ("target_miou", "mIoU %", PER_CENT, 1, "higher"),
    ("target_ece", "ECE %", PER_CENT, 1, "lower"),
    ("target_classwise_ece", "class ECE %", PER_CENT, 1, "lower"),
    ("target_nll", "NLL", PLAIN, 3, "lower"),
    ("target_brier", "Brier", PLAIN, 3, "lower"),
    ("target_entropy", "entropy", PLAIN, 3, ""),
    ("target_infomax", "InfoMax", PLAIN, 3, "higher"),
    ("target_view_agreement", "views agree %", PER_CENT, 1, "higher"),
    ("target_perturbed_agreement", "perturbed agree %", PER_CENT, 1, "higher"),
    ("target_judge_miou", "mIoU against the second judge %", PER_CENT, 1, "higher"),
    ("target_judge_agreement", "second judge agrees %", PER_CENT, 1, "higher"),
    ("target_class_coverage", "classes seen %", PER_CENT, 0, "higher"),
    ("target_class_drift", "class drift %", PER_CENT, 1, "lower"),
    ("source_miou", "source mIoU %", PER_CENT, 1, "higher"),
    ("adapt_seconds", "fit s", PLAIN, 0, "lower"),
    ("peak_memory_mb", "memory MB", PLAIN, 0, "lower"),
)
"""Score, heading, factor, digits, and which values are good."""
DRAWN_BY_METHODS = ("ada_bn_layers.png", "auto.png")
"""Pictures that methods leave in their run folders."""


def write_report(folders: Iterable[Path], out: Path, *, title: str, show_progress: ShowProgress = no_progress) -> Path:
    """Write the report of all runs in folders.

    Args:
        folders: Run folders, or folders that hold some at any depth.
        out: The file.
        title: What stands on top.
        show_progress: Shows how far it is, which takes minutes for hundreds of runs.

    Returns:
        The file.

    Raises:
        UserError: there is no scored run, the runs score other classes, or a file cannot be read or written.
    """
    return write_page(gather(folders, show_progress), out, title=title, show_progress=show_progress)


def write_page(findings: Findings, out: Path, *, title: str, show_progress: ShowProgress = no_progress) -> Path:
    """Write the report of what was gathered otherwise."""
    write_whole(out, render(findings, title, show_progress).encode())
    return out


def render(findings: Findings, title: str, show_progress: ShowProgress = no_progress) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("sfda.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    with show_progress("comparing with the source model", len(findings.entries)) as advance:
        intervals = dict(_intervals(findings, advance))
    chosen = choose_images(findings)
    return environment.get_template("template.html").render(
        title=title,
        about=_about(findings),
        verdicts=_verdicts(findings, intervals),
        headings=_headings(findings),
        is_labelled=_is_labelled(findings),
        rows=[_row(entry, findings, intervals.get(entry.name)) for entry in findings.entries],
        classes=_classes(findings),
        images=_images(findings, chosen),
        entries=[entry.name for entry in findings.entries if pictures_of(entry)],
        legend=[(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in findings.classes.items()],
        figures=_figures(findings),
        left_by_methods=_left_by_methods(findings),
        command=findings.command,
        commands=[_commands(entry) for entry in findings.entries if entry.runs],
        version=__version__,
    )


def _intervals(findings: Findings, advance: Advance) -> Iterator[tuple[str, Interval]]:
    for entry in findings.entries:
        if findings.source is not None and (interval := entry.interval(findings.source)) is not None:
            yield entry.name, interval
        advance(1)


def _about(findings: Findings) -> str:
    first = findings.entries[0].rows[0]
    seeds = max(len(entry.rows) for entry in findings.entries)
    images = max((len(entry.records[0].names) for entry in findings.entries if entry.records), default=0)
    counted = f", {images} images" if images else ""
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return f"{first['source'] or 'no source data'} → {first['target']}; {first['class_set']}{counted}; {spread}"


# ---------------------------------------------------------------- tables


def _verdicts(findings: Findings, intervals: dict[str, Interval]) -> list[tuple[str, str, str]]:
    """Name, verdict and why, of everything that is compared with the source model."""
    found: list[tuple[str, str, str]] = []
    for entry in findings.entries:
        if entry is findings.source:
            continue
        if entry.verdict is not None:
            found.append((entry.name, entry.verdict.word, "; ".join(entry.verdict.reasons)))
        elif (interval := intervals.get(entry.name)) is not None:
            word = "cannot tell" if interval.includes_zero else "better" if interval.low > 0 else "worse"
            found.append((entry.name, word, _in_words(interval)))
        elif verdict := entry.word("verdict"):
            found.append((entry.name, verdict, "without labels: " + "; ".join(_reasons(entry))))
    return found


def _in_words(interval: Interval) -> str:
    low, high = (f"{100 * value:+.1f}" for value in (interval.low, interval.high))
    zero = ", which includes zero" if interval.includes_zero else ""
    return f"{100 * interval.difference:+.1f} mIoU, 95 % interval over images {low} to {high}{zero}"


def _reasons(entry: Entry) -> list[str]:
    return list(entry.selection.get("reasons", []))


def _headings(findings: Findings) -> list[tuple[str, str]]:
    """Heading of each column that any entry has, and which of its values are good."""
    scores = [(heading, good) for column, heading, _, _, good in COLUMNS if _is_known(findings, column)]
    words = [("verdict without labels", ""), ("source-free", ""), ("labels read", ""), ("selected by", "")]
    if not _is_labelled(findings):
        return [("experiment", ""), *scores, *words]
    return [("experiment", ""), ("mIoU over the source", "higher"), *scores, ("boundary IoU %", "higher"), *words]


def _is_labelled(findings: Findings) -> bool:
    return any(entry.confusion for entry in findings.entries)


def _is_known(findings: Findings, column: str) -> bool:
    return any(entry.mean(column) is not None for entry in findings.entries)


def _row(entry: Entry, findings: Findings, interval: Interval | None) -> list[tuple[str, float | None]]:
    """Text of each cell, and the number that it is sorted by."""
    first = entry.rows[0]
    gain = ("–", None) if interval is None else (_shortly(interval), interval.difference)
    scores = [
        _number(entry.mean(column), entry.deviation(column), factor, digits)
        for column, _, factor, digits, _ in COLUMNS
        if _is_known(findings, column)
    ]
    words = [
        entry.word("verdict") or "–",
        "yes" if first["source_free"] else "no",
        str(first["labels_read"] or "none"),
        entry.word("selected_by") or "–",
    ]
    of_labels = _is_labelled(findings)
    return [
        (entry.name, None),
        *([gain] if of_labels else []),
        *scores,
        *([_number(boundary_iou(entry), None, PER_CENT, 1)] if of_labels else []),
        *((word, None) for word in words),
    ]


def _shortly(interval: Interval) -> str:
    low, high = (f"{100 * value:+.1f}" for value in (interval.low, interval.high))
    zero = ", includes zero" if interval.includes_zero else ""
    return f"{100 * interval.difference:+.1f} ({low} to {high}{zero})"


def _number(mean: float | None, deviation: float | None, factor: float, digits: int) -> tuple[str, float | None]:
    if mean is None:
        return "–", None
    spread = "" if deviation is None else f" ± {factor * deviation:.{digits}f}"
    return f"{factor * mean:.{digits}f}{spread}", mean


def _classes(findings: Findings) -> dict[str, Any] | None:
    """IoU of the source model per class, and how far the others lie from it."""
    if findings.source is None or (before := findings.source.iou) is None:
        return None
    others = [(entry, entry.iou) for entry in findings.entries if entry is not findings.source]
    known = [(entry.name, after) for entry, after in others if after is not None]
    rows = [
        (name, 100 * float(before[i]), [100 * float(after[i] - before[i]) for _, after in known])
        for i, name in enumerate(findings.classes)
    ]
    return {"source": findings.source.name, "names": [name for name, _ in known], "rows": rows}


# ---------------------------------------------------------------- pictures


def _images(findings: Findings, chosen: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    for name, why in chosen.items():
        views = {entry.name: views_of(pictures_of(entry)[name]) for entry in findings.entries if pictures_of(entry)}
        first = next(pictures_of(entry)[name] for entry in findings.entries if pictures_of(entry))
        shared = {
            kind: as_uri(first[kind], form) for kind, form in (("image", "jpg"), ("truth", "png")) if kind in first
        }
        found.append({"name": name, "why": why, "shared": shared, "views": views})
    return found


def _figures(findings: Findings) -> list[tuple[str, Markup]]:
    drawn = [
        (
            "Reliability: on the dotted line, confidence is as high as accuracy",
            figures.draw_reliability(findings.entries),
        ),
        (
            "Risk and coverage: errors that are left where unsure pixels are left out",
            figures.draw_risk_coverage(findings.entries),
        ),
        ("Class mass: how much of the images each model gives to each class", figures.draw_class_mass(findings)),
        ("Cost and gain", figures.draw_cost(findings)),
        *(
            (
                f"Selectors of {entry.name}: circles are what each would keep",
                figures.draw_selection(entry.selection),
            )
            for entry in findings.entries
        ),
    ]
    return [(caption, Markup(svg)) for caption, svg in drawn if svg is not None]


def _left_by_methods(findings: Findings) -> list[tuple[str, str]]:
    paths = [
        (entry.name, entry.runs[0].folder / name)
        for entry in findings.entries
        if entry.runs
        for name in DRAWN_BY_METHODS
    ]
    return [(name, as_uri(path.read_bytes(), "png")) for name, path in paths if path.is_file()]


def _commands(entry: Entry) -> tuple[str, list[str], str]:
    """Name, what does it again, and the whole config of the first seed."""
    run = entry.runs[0]
    verb = "fit" if entry.mean("adapt_seconds") is not None else "validate"
    again = [f"sfda {verb} --config {shlex.quote(str(run.config_file))} --out NEW_FOLDER"]
    again += ["sfda validate --run NEW_FOLDER"] if verb == "fit" else []
    return entry.name, again, run.config_file.read_text(encoding="utf-8")


def default_title(folders: Sequence[Path]) -> str:
    """What a report is called that nobody has named."""
    return ", ".join(folder.name for folder in folders)
