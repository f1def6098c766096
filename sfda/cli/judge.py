"""``sfda judge``: is an adapted model better than its source? From unlabelled images, or from a few labelled ones."""

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfda.cli.judge_models import Judged, judge_of, num_classes_of, source_of, what_is_common
from sfda.cli.judge_page import Album
from sfda.cli.judge_tables import describe, labelled_table, unlabelled_table
from sfda.data.errors import BadPair, UnreadableFile
from sfda.data.images import read_image
from sfda.data.layouts import domains_of
from sfda.data.photographs import labels_of, link_images, look_over, spread
from sfda.data.readers import SegmentationSet, refuse_train_ids
from sfda.errors import UserError
from sfda.judging.bootstrap import Confusions, paired_interval
from sfda.judging.evidence import JUDGE, Evidence, Model, look_at, together
from sfda.judging.second_judge import GATHERED
from sfda.judging.verdict import Verdict, judge_with_labels, judge_without_labels
from sfda.methods import Method
from sfda.methods.kinds.rebuild import load_fixed_method
from sfda.metrics.functional import score_sums
from sfda.progress import progress, status, table_console
from sfda.report.page import write_page
from sfda.runs.run import Run

SOURCE = "source"
COUNT = 24
"""Images that are looked at, where nobody says how many."""


class Findings(NamedTuple):
    """What came out: a table of all models, what it is about, and a verdict per run.

    `methods` and `evidence` are of all models, the latter without labels alone.
    """

    table: Table
    caption: str
    verdicts: dict[str, Verdict]
    methods: Mapping[str, Method]
    evidence: Mapping[str, Evidence]


def judge(said: argparse.Namespace) -> int:
    """Run ``sfda judge``; returns the exit status.

    Raises:
        UserError: the runs cannot be compared, or the images or labels cannot be used.
    """
    if said.count < 2:
        raise UserError(f"--count {said.count}: at least 2 images, so that what differs is told from chance")
    if said.out is not None and said.out.exists():
        raise UserError(f"{said.out} exists already: move it away, or give another --out")
    runs = {_name(folder, said.runs): Run(folder) for folder in said.runs}
    console = table_console()
    photographs = look_over(said.images)
    for fault in photographs.faults:
        _say_unreadable(fault, console)
    images = photographs.images
    labels = labels_of(images, said.images, said.labels) if said.labels else {}
    source = Run(said.source) if said.source else None
    album = None
    if said.out is not None:
        classes = what_is_common(list(runs.values()), said.classes).scored
        album = Album([SOURCE, *runs], classes, with_labels=bool(labels))
    found = look(
        runs,
        images,
        labels,
        console,
        source=source,
        classes=said.classes,
        label_values=said.label_values,
        count=said.count,
        album=album,
    )
    console.print(found.table)
    console.print(Text(found.caption), soft_wrap=True)
    for name, verdict in found.verdicts.items():
        console.print(describe(name, verdict), soft_wrap=True)
    if album is not None:
        known = {SOURCE: source, **runs} if source is not None else runs
        page = album.findings(known, found.methods, found.verdicts, found.evidence, said.images, said.command)
        write_page(page, said.out, title=f"{', '.join(runs)} on {said.images.name}")
        console.print(Text(f"{said.out}: open it in a browser"), soft_wrap=True)
    return 0


def look(
    runs: Mapping[str, Run],
    images: Sequence[Path],
    labels: Mapping[Path, Path],
    console: Console,
    *,
    source: Run | None = None,
    classes: str | None = None,
    label_values: str | None = None,
    count: int = COUNT,
    album: Album | None = None,
) -> Findings:
    """Compare runs with their source model on images, by the labels of those that have some.

    Args:
        runs: The runs by name.
        images: All images.
        labels: Image → label map.
        console: Where progress is shown.
        source: The run of the source model; None: what the runs started from.
        classes: Class set of the label maps; None: what the runs score.
        label_values: What label maps in Cityscapes classes hold; None: what the runs' data say.
        count: Images that are looked at at most.
        album: Is given what every model predicts.

    Raises:
        UserError: the runs cannot be compared, or a file cannot be used.
    """
    judged = what_is_common(list(runs.values()), classes, label_values)
    methods = {SOURCE: source_of(list(runs.values()), source)}
    methods |= {name: load_fixed_method(run, num_classes_of(run)) for name, run in runs.items()}
    models = {name: judged.model(method.to(judged.device)) for name, method in methods.items()}
    if labels:
        chosen = {image: labels[image] for image in spread(list(labels), count)}
        confusions = _confusions(models, judged, chosen, console, album)
        intervals = {name: paired_interval(confusions[SOURCE], confusions[name]) for name in runs}
        found = len(confusions[SOURCE])
        verdicts = {name: judge_with_labels(interval, found) for name, interval in intervals.items()}
        caption = f"{found} labelled images; paired bootstrap over images: of other streets it says nothing"
        return Findings(labelled_table(confusions, intervals), caption, verdicts, methods, {})
    evidence = _gather(models, judged, methods[SOURCE], _readable(spread(images, count), console), console, album)
    source_evidence = evidence[SOURCE]
    verdicts = {
        name: judge_without_labels(source_evidence, evidence[name], evidence[JUDGE], trains_on=methods[name].optimises)
        for name in runs
    }
    caption = (
        f"without labels, {len(source_evidence.kept)} images. The second judge is the source model at the size and "
        "with the statistics of most InfoMax; drift: how far the classes' shares lie from its"
    )
    return Findings(unlabelled_table(evidence), caption, verdicts, methods, evidence)


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """The last part of a run's path, with that before a mere seed, or all of it where two end alike."""
    names = ["/".join(each.parts[-2:]) if re.fullmatch(r"seed\d+", each.name) else each.name for each in folders]
    name = names[folders.index(folder)]
    return name if names.count(name) == 1 else str(folder)


def _readable(images: Sequence[Path], console: Console) -> list[Path]:
    """Those that can be read; the others are named."""
    readable = [path for path in images if _can_be_read(path, console)]
    if not readable:
        raise UserError("none of the images that were to be looked at can be read: see above")
    return readable


def _can_be_read(path: Path, console: Console) -> bool:
    try:
        read_image(path)
    except UnreadableFile as fault:
        _say_unreadable(fault, console)
        return False
    return True


def _say_unreadable(fault: UserError, console: Console) -> None:
    console.print(Text(f"✗ {fault}", style="yellow"), soft_wrap=True)


# ---------------------------------------------------------------- without labels


def _gather(
    models: Mapping[str, Model],
    judged: Judged,
    source: Method,
    images: Sequence[Path],
    console: Console,
    album: Album | None,
) -> dict[str, Evidence]:
    with status(console, "choosing the second judge"):
        second = judge_of(source, judged, spread(images, GATHERED))
    rows: dict[str, list[Evidence]] = {name: [] for name in (*models, JUDGE)}
    with progress(console, "judging", len(images)) as advance:
        for path in images:
            pixels = read_image(path)
            image = judged.tensor(pixels)
            for name, row in look_at(image, models[SOURCE], second, models).items():
                rows[name].append(row)
                if album is not None and name in models:
                    album.add(name, path.name, pixels, _predicted(models[name], image), None)
            advance(1)
    return {name: together(each) for name, each in rows.items()}


@torch.inference_mode()
def _predicted(model: Model, image: torch.Tensor) -> torch.Tensor:
    return model.predict(image, (image.shape[-2], image.shape[-1])).cpu()


# ---------------------------------------------------------------- with labels


@torch.inference_mode()
def _confusions(
    models: Mapping[str, Model],
    judged: Judged,
    pairs: Mapping[Path, Path],
    console: Console,
    album: Album | None,
) -> dict[str, Confusions]:
    found: dict[str, list[Any]] = {name: [] for name in models}
    paths = list(pairs)
    with tempfile.TemporaryDirectory(prefix="sfda-judge-") as temporary:
        samples = _samples(pairs, Path(temporary), judged)
        refuse_train_ids(samples, "give --label-values train_ids")
        with progress(console, "scoring", len(samples)) as advance:
            for index in range(len(samples)):
                try:
                    sample = samples.read(index)
                except BadPair as fault:
                    _say_unreadable(fault, console)
                    continue
                assert sample.label is not None
                label = torch.from_numpy(sample.label)[None]
                size = (label.shape[-2], label.shape[-1])
                for name, model in models.items():
                    probabilities = model.predict(judged.tensor(sample.image), size).cpu()
                    found[name].append(score_sums(probabilities, label)["confusion"].numpy())
                    if album is not None:
                        album.add(name, paths[int(sample.name)].name, sample.image, probabilities, label)
                advance(1)
    if not found[SOURCE]:
        raise UserError("none of the labelled images can be read: see above")
    return {name: np.stack(each) for name, each in found.items()}


def _samples(pairs: Mapping[Path, Path], folder: Path, judged: Judged) -> SegmentationSet:
    names = {image: f"{number:06d}" for number, image in enumerate(pairs)}
    link_images(((names[image], image) for image in pairs), folder / "val")
    link_images(((names[image], label) for image, label in pairs.items()), folder / "labels")
    target = {"layout": "folder", "root": str(folder), "val_images": "val", "val_labels": "labels"}
    options = {"target": {**target, "train_images": "val", **judged.label_options}}
    return SegmentationSet(domains_of(options)["target"], "val", True, judged.scored)
