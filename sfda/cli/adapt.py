"""``sfda adapt``: from somebody's model and a folder of images to an adapted model, in one command."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from sfda.cli.adapt_picture import draw_before_after, draw_source
from sfda.cli.adapt_report import finish, print_plan, print_table, say, warn_of_few_classes
from sfda.cli.judge import look
from sfda.cli.judge_tables import describe
from sfda.cli.preprocessing import warn_of_preprocessing
from sfda.cli.source import Source, open_source
from sfda.cli.weights import write_source
from sfda.data.label_spaces import NAMED, load_class_set, score_groups
from sfda.data.layouts import domains_of
from sfda.data.paths import files_below
from sfda.data.photographs import Photographs, flat_names, labels_of, link_images, look_over, spread
from sfda.data.readers import SegmentationSet, class_set_of_files, refuse_train_ids
from sfda.errors import UserError
from sfda.files import read_json, write_json, write_whole
from sfda.networks.batch_norm import batch_norm_layers
from sfda.networks.timing import pass_seconds
from sfda.processes import preload
from sfda.progress import status, table_console
from sfda.report.page import NAME, write_report
from sfda.runs.adaptation import (
    AUTO,
    JUDGED,
    MOST_PIXELS,
    Plan,
    data_config,
    make_plan,
    methods_asked_for,
    plan_of,
    stages_of,
    takes_share,
)
from sfda.runs.engine import Stage, fit, has_fit, score
from sfda.runs.experiment import data_options
from sfda.yaml_files import read_mapping

CHECKED_IMAGES = 6
CHECKED_PIXELS = 192 * 256
"""Images that the preprocessing is checked on, and how large."""
SHARE = 0.8
"""Part of the time that is planned; the rest is for what takes longer than it was measured."""


def adapt(said: argparse.Namespace) -> int:
    """Run ``sfda adapt``; returns the exit status.

    Raises:
        UserError: the model, the images or an option cannot be used, or `out` belongs to something else.
    """
    begun = time.monotonic()
    console = table_console()
    _check(said)
    photographs = look_over(said.images)
    labels = labels_of(photographs.images, said.images, said.labels) if said.labels else {}
    _claim(said, photographs)
    _describe(photographs, labels, said.labels, console)
    source = open_source(said.source, said)
    say(console, *source.story)
    score_classes = _score_classes(said, source)
    if AUTO in said.method and not batch_norm_layers(source.segmenter):
        say(console, "the network has no BatchNorm, so there are no statistics to adapt: auto chooses the size alone")
    methods = methods_asked_for(said.method)
    with status(console, "timing the network"):
        plan = _plan(said, source, photographs, len(labels), methods)
    preload()  # not before the network is timed
    out: Path = said.out
    images = [str(image.relative_to(said.images)) for image in photographs.images]
    write_json(out / "adapt.json", {"asked": _asked(said), "images": images, "plan": plan.as_dict()})
    if not (out / "source.yaml").is_file():
        small = photographs.size(CHECKED_PIXELS)
        with status(console, "checking the preprocessing"):
            warn_of_preprocessing(source, spread(photographs.images, CHECKED_IMAGES), small, console)
        write_source(source, out / "source.ckpt")
    apart = _link(photographs, labels, plan, out / "images")
    _write_data(plan, source, score_classes, out, said.label_values if labels else None)
    _check_labels(out / "data.yaml", bool(labels))
    print_plan(plan, console, said.minutes)
    stages = stages_of(plan, out, out / "source.yaml", out / "data.yaml", said.share)
    if not (out / "source.png").is_file():
        draw_source(source, spread(photographs.images, 4), plan.size, out / "source.png")
    say(console, f"Open {out / 'source.png'}: what the source model sees")
    for number, stage in enumerate(stages, start=1):
        _run(console, stage, f"{number}/{len(stages)} {stage.name}")
        if number == 1:
            warn_of_few_classes(stage.run.row(), console)
    print_table([stage.run for stage in stages], console, with_labels=bool(labels), apart=apart)
    chosen = _choose(console, stages, photographs, labels)
    picture = out / "before_after.png"
    changed = draw_before_after(stages[0].run, chosen.run, spread(photographs.images, 6), plan.size, picture)
    page = write_report([stage.run.folder for stage in stages], out / NAME, title=said.images.resolve().name)
    say(console, f"Open {page}: all of it, and the same images for all models")
    finish(console, said, stages, chosen, changed, time.monotonic() - begun)
    return 0


def _check(said: argparse.Namespace) -> None:
    """What is known to be wrong before anything is read."""
    if said.minutes <= 0:
        raise UserError(f"--minutes {said.minutes:g}: a time above 0")
    if said.images.resolve() in (said.out.resolve(), *said.out.resolve().parents):
        raise UserError(f"--out {said.out}: lies in the folder of the images, {said.images}; give another one")
    _check_share(said.share, methods_asked_for(said.method))
    if said.classes is not None:
        load_class_set(said.classes)


def _check_share(share: str | None, methods: Sequence[str]) -> None:
    if share is None:
        return
    try:
        is_share = share == "auto" or 0 <= float(share) <= 1
    except ValueError:
        is_share = False
    if not is_share:
        raise UserError(f"--share {share}: auto, or a number from 0 to 1")
    if not any(map(takes_share, methods)):
        raise UserError(f"--share {share}: nothing here trains; name a method that does, for example --method info_max")


def _check_labels(data: Path, with_labels: bool) -> None:
    """Stop before the plan is run where labels seem to hold other values."""
    if with_labels:
        target = domains_of(data_options(data, read_mapping(data)))["target"]
        labelled = SegmentationSet(target, "val", True, class_set_of_files(target))
        refuse_train_ids(labelled, "give --label-values train_ids and another --out")


def _asked(said: argparse.Namespace) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(said).items() if key != "out"}


def _claim(said: argparse.Namespace, photographs: Photographs) -> None:
    """Refuse a folder that another command has filled."""
    path = said.out / "adapt.json"
    if not path.is_file():
        if said.out.exists() and (not said.out.is_dir() or any(said.out.iterdir())):
            raise UserError(f"--out {said.out}: holds other files already; choose another folder")
        return
    begun = read_json(path)
    for key, value in _asked(said).items():
        if (before := begun["asked"].get(key)) != value:
            option = f"--{key.replace('_', '-')}"
            raise UserError(f"--out {said.out} was begun with {option} {before}: give another --out")
    now = {str(image.relative_to(said.images)) for image in photographs.images}
    if other := sorted(now ^ set(begun["images"])):
        raise UserError(
            f"--out {said.out} was begun with {len(begun['images'])} images of {said.images}, which has {len(now)} now "
            f"(the first other one: {other[0]}): give another --out, so that all is scored on the same"
        )


def _describe(photographs: Photographs, labels: dict[Path, Path], label_folder: Path | None, console: Console) -> None:
    sizes = sorted(photographs.sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} of {width}x{height}" for (height, width), count in sizes[:3])
    more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    labelled = f", {len(labels)} with labels" if labels else ""
    say(console, f"{photographs.folder}: {len(photographs.images)} images{labelled}; {shown}{more}")
    used = set(labels.values())
    files = sorted(files_below(label_folder)) if label_folder else []
    if unused := [path for path in files if path.suffix.lower() == ".png" and path not in used]:
        text = f"{len(unused)} label maps have no image of their name, for example {unused[0]}"
        console.print(Text(text, style="yellow"), soft_wrap=True)
    for line in (photographs.left_out, *(f"✗ {fault}" for fault in photographs.faults)):
        if line:
            console.print(Text(line, style="yellow"), soft_wrap=True)
    if stretched := photographs.stretched():
        console.print(
            Text(f"{stretched} images have another shape, and are stretched to the commonest", style="yellow")
        )


def _score_classes(said: argparse.Namespace, source: Source) -> str | None:
    """The classes that are scored, None where they are those of the network."""
    if said.classes is None:
        return None
    wanted = load_class_set(said.classes)
    score_groups(source.classes, wanted)  # refuses what cannot be scored
    return said.classes if said.classes in NAMED else str(Path(said.classes).absolute())


def _plan(
    said: argparse.Namespace, source: Source, photographs: Photographs, labelled: int, methods: Sequence[str]
) -> Plan:
    stored = said.out / "adapt.json"
    if stored.is_file():
        return plan_of(read_json(stored)["plan"])
    size = photographs.size(MOST_PIXELS)
    seconds = pass_seconds(source.segmenter, size)
    return make_plan(methods, size, len(photographs.images), labelled, seconds, SHARE * 60 * said.minutes)


def _link(photographs: Photographs, labels: dict[Path, Path], plan: Plan, folder: Path) -> bool:
    """Images to adapt to and images to score, as links: what has labels is kept apart where enough is left.

    Returns:
        Whether it is.
    """
    names = flat_names(photographs.images, photographs.folder)
    scored = spread(list(labels) or list(photographs.images), plan.scored)
    unlabelled = [image for image in photographs.images if image not in labels]
    apart = bool(labels) and len(unlabelled) >= plan.gathered
    adapted = unlabelled if apart else photographs.images
    link_images(((names[image], image) for image in adapted), folder / "train")
    link_images(((names[image], image) for image in scored), folder / "val")
    if labels:
        link_images(((names[image], labels[image]) for image in scored), folder / "labels")
    return apart


def _write_data(plan: Plan, source: Source, score_classes: str | None, out: Path, label_values: str | None) -> None:
    classes = source.classes.name
    if classes not in NAMED:
        classes = str((out / "source.classes.yaml").absolute())
    content = data_config(plan, (out / "images").absolute(), classes, score_classes, label_values)
    write_whole(out / "data.yaml", yaml.safe_dump(content, sort_keys=False).encode())


def _run(console: Console, stage: Stage, title: str) -> None:
    with status(console, "loading"):
        fitted = stage.run.is_finished or has_fit(stage)
    if fitted:
        fit(console, stage, title)
    score(console, stage, title)


def _choose(console: Console, stages: Sequence[Stage], photographs: Photographs, labels: Mapping[Path, Path]) -> Stage:
    """What is recommended: the last one of ``auto``, or the first method that was named, unless it is judged worse."""
    source = stages[0]
    named = [stage for stage in stages[1:] if not stage.name.startswith("source_only")]
    candidate = named[0] if named else stages[-1]
    if candidate is source:
        return source
    found = look({candidate.name: candidate.run}, photographs.images, labels, console, source=source.run, count=JUDGED)
    verdict = found.verdicts[candidate.name]
    console.print(describe(candidate.name, verdict), soft_wrap=True)
    return source if verdict.word == "worse" else candidate
