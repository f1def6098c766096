"""``sfda data check``: every pair opened once and every fault named in one run, before a training meets them singly.

torch is not imported, so that worker processes start at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from sfda.cli.data_check_tables import merged_faults, print_tables
from sfda.data.errors import MissingLabels, UnreadableFile
from sfda.data.images import read_image, read_orientation
from sfda.data.label_spaces import CITYSCAPES19, ClassSet, Lookup, load_class_set, score_groups
from sfda.data.layouts import Domain, domains_of, layout_of
from sfda.data.pairs import Pair, read_pairs
from sfda.data.places import describe_other_files, has_label_folder, lacks_validation
from sfda.data.readers import class_set_of_files, count_values, labels_in, look_up, read_values
from sfda.data.splits import Split
from sfda.errors import UserError
from sfda.progress import progress
from sfda.runs.experiment import data_options, find_fragment, read_config

PAIRS_AT_A_TIME = 8


def _no_counts() -> npt.NDArray[np.int64]:
    return np.zeros(256, dtype=np.int64)


@dataclass
class Findings:
    """What was seen in some pairs."""

    labelled: int = 0  # pairs that have a label file
    bad: int = 0  # pairs that cannot be used
    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)  # images of each (height, width)
    turned: list[tuple[int, Path]] = field(default_factory=list)  # EXIF orientations other than 1
    pixels: npt.NDArray[np.int64] = field(default_factory=_no_counts)  # of each train id
    images: npt.NDArray[np.int64] = field(default_factory=_no_counts)  # label maps in which it occurs
    values: npt.NDArray[np.int64] = field(default_factory=_no_counts)  # pixels of each value in the label files
    faults: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Add what was seen in other pairs."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class SplitReport:
    """One split of one domain; without a lookup table its labels are not opened."""

    name: str
    split: Split
    domain: Domain
    pairs: list[Pair] = field(default_factory=list)
    classes: ClassSet = CITYSCAPES19
    table: Lookup | None = None
    needs_no_labels: bool = False
    needs_no_images: bool = False
    other_files: str = ""
    found: Findings = field(default_factory=Findings)

    def __str__(self) -> str:
        return f"{self.name} {self.split}"


def check(config: str) -> int:
    """Open every pair of every configured domain, print what is there and all that is wrong with it.

    Args:
        config: A data fragment, an experiment's base, or a run's ``config.yaml``.

    Returns:
        The exit status: 0 without faults, 1 with faults.

    Raises:
        UserError: the config itself cannot be used.
    """
    path = find_fragment(config)
    options = data_options(path, read_config(path))
    domains = domains_of(options)
    for domain in domains.values():
        layout_of(domain)  # refuses a name that is not known
    console = Console()
    faults: list[str] = []
    classes, score_classes = _class_sets(options, faults)
    reports = [SplitReport(name, split, domain) for name, domain in domains.items() for split in get_args(Split)]
    for report in reports:
        _list_pairs(report, classes, score_classes)
    _open_pairs(reports, console)
    print_tables(reports, console)
    faults = [f"config: {fault}" for fault in faults] + merged_faults(reports)
    for fault in faults:
        console.print(Text.assemble(("✗ ", "bold red"), fault), soft_wrap=True)
    bad, pairs = sum(report.found.bad for report in reports), sum(len(report.pairs) for report in reports)
    if faults:
        unusable = f"{bad} of {pairs} pairs cannot be used" if pairs else "no pair was found"
        console.print(f"{_counted(len(faults), 'fault')}; {unusable}", style="bold red")
        return 1
    console.print(f"no faults in {_counted(pairs, 'pair')}", style="bold green")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _class_sets(options: dict[str, Any], faults: list[str]) -> tuple[ClassSet, ClassSet]:
    """`classes` and `score_classes`; `cityscapes19` in the place of one that is at fault."""
    try:
        classes = load_class_set(options.get("classes") or CITYSCAPES19.name)
        score_classes = load_class_set(options.get("score_classes") or classes.name)
        score_groups(classes, score_classes)
    except UserError as error:
        faults.append(str(error))
        return CITYSCAPES19, CITYSCAPES19
    return classes, score_classes


def _list_pairs(report: SplitReport, classes: ClassSet, score_classes: ClassSet) -> None:
    def note(fault: UserError) -> None:
        of_target = isinstance(fault, MissingLabels) and report.name == "target"
        if of_target and not has_label_folder(report.domain, report.split):
            report.needs_no_labels = True
        else:
            report.found.faults.append(str(fault))

    try:
        report.other_files = describe_other_files(report.domain, report.split)
        report.needs_no_images = (report.name, report.split) == ("target", "val") and lacks_validation(report.domain)
        if report.needs_no_images:
            return
        report.pairs = read_pairs(report.domain, report.split, with_labels=True, report=note)
        if any(pair.label for pair in report.pairs):
            _look_up(report, classes, score_classes)
    except UserError as fault:
        note(fault)


def _look_up(report: SplitReport, classes: ClassSet, score_classes: ClassSet) -> None:
    """Say in which classes the labels are counted, and try that they can be read as a run would read them."""
    own = class_set_of_files(report.domain)
    report.classes = own if layout_of(report.domain).classes is None else classes
    report.table = labels_in(report.domain, report.classes)
    if report.split == "val":
        labels_in(report.domain, score_classes)
    elif report.name == "source":
        labels_in(report.domain, classes)


def check_pairs(pairs: Sequence[Pair], domain: Domain, table: Lookup | None) -> Findings:
    """Open some pairs of a domain; labels as far as there is a table to look their values up in."""
    found = Findings()
    for pair in pairs:
        faults, size = [], None
        try:
            size = read_image(pair.image, domain.max_pixels).shape[:2]
            found.sizes[size] += 1
            if (orientation := read_orientation(pair.image)) != 1:
                found.turned.append((orientation, pair.image))
        except UnreadableFile as fault:
            faults.append(str(fault))
        if pair.label is not None and not pair.label.is_file():
            faults.append(f"{pair.image}: an image without a label, expected is {pair.label}")
        elif pair.label is not None:
            found.labelled += 1
            try:
                if table is not None:
                    values = read_values(pair.label, domain, pair.image, size)
                    found.values += count_values(values)
                    pixels = count_values(look_up(values, table, pair.label, domain))
                    found.pixels += pixels
                    found.images += pixels > 0
            except UnreadableFile as fault:
                faults.append(str(fault))
        found.bad += bool(faults)
        found.faults += faults
    return found


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    cv2.setNumThreads(0)  # the processes are the parallelism


def _open_pairs(reports: Sequence[SplitReport], console: Console) -> None:
    portions = [
        (report, report.pairs[start : start + PAIRS_AT_A_TIME])
        for report in reports
        for start in range(0, len(report.pairs), PAIRS_AT_A_TIME)
    ]
    if not portions:
        return
    workers = min(os.cpu_count() or 1, len(portions))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        arguments = zip(*((pairs, report.domain, report.table) for report, pairs in portions), strict=True)
        with progress(console, "opening pairs", sum(len(report.pairs) for report in reports)) as advance:
            for (report, pairs), found in zip(portions, pool.map(check_pairs, *arguments), strict=True):
                report.found.add(found)
                advance(len(pairs))
    finally:
        pool.shutdown(cancel_futures=True)
