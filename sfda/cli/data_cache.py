"""``sfda data cache``: decoded copies of all images and labels of a data config, see `sfda.data.cache`.

torch is not imported, so that worker processes start at once.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import get_args

import cv2
from rich.console import Console
from rich.filesize import decimal

from sfda.data.cache import FOLDER, copy_path, write_copy
from sfda.data.errors import UnreadableFile
from sfda.data.images import read_image, read_label_values
from sfda.data.layouts import Domain, domains_of
from sfda.data.pairs import Pair, read_pairs
from sfda.data.places import has_label_folder
from sfda.data.readers import label_kind
from sfda.data.splits import Split
from sfda.errors import UserError
from sfda.progress import progress
from sfda.runs.experiment import data_options, find_fragment, read_config

PAIRS_AT_A_TIME = 8


def cache(config: str) -> int:
    """Copy what has no copy yet; what cannot be read is left to `sfda data check`.

    Args:
        config: A data fragment, an experiment's base, or a run's ``config.yaml``.

    Returns:
        The exit status 0.

    Raises:
        UserError: the config cannot be used, there is no image, or not enough room for the copies.
    """
    path = find_fragment(config)
    portions = [
        (domain, pairs[start : start + PAIRS_AT_A_TIME])
        for domain in domains_of(data_options(path, read_config(path))).values()
        for pairs in _splits(domain)
        for start in range(0, len(pairs), PAIRS_AT_A_TIME)
    ]
    console = Console()
    count = sum(len(pairs) for _, pairs in portions)
    if not count:
        raise UserError(f"{path}: no image was found; `sfda data check --config {config}` says what is missing")
    _refuse_full_disk(portions)
    workers = min(os.cpu_count() or 1, len(portions))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    written = 0
    try:
        with progress(console, "copying pairs", count) as advance:
            for (_, pairs), size in zip(portions, pool.map(copy_pairs, *zip(*portions, strict=True)), strict=True):
                written += size
                advance(len(pairs))
    finally:
        pool.shutdown(cancel_futures=True)
    where = f"in folders {FOLDER} beside the files"
    console.print(f"{count} pairs have their copies {where}; {decimal(written)} were written", soft_wrap=True)
    return 0


def _splits(domain: Domain) -> list[list[Pair]]:
    found = []
    for split in get_args(Split):
        with suppress(UserError):  # a target may have one split alone
            with_labels = has_label_folder(domain, split)
            found.append(read_pairs(domain, split, with_labels, report=lambda fault: None))
    return found


def _refuse_full_disk(portions: Sequence[tuple[Domain, Sequence[Pair]]]) -> None:
    """By the size of the first image of every domain, of those that have no copy yet."""
    needed, free, first = 0, 0, Path()
    sizes: dict[Domain, int] = {}
    for domain, pairs in portions:
        for pair in pairs:
            if _has_copy(pair.image):
                continue
            if domain not in sizes:
                with suppress(UnreadableFile):
                    sizes[domain] = 4 * read_image(pair.image, domain.max_pixels)[..., 0].size
                    first, free = pair.image, shutil.disk_usage(pair.image.parent).free
            needed += sizes.get(domain, 0)
    if needed > free:
        raise UserError(
            f"{first.parent}: copies take about {decimal(needed)} and {decimal(free)} are free: make room there, or do "
            "without them"
        )


def _has_copy(image: Path) -> bool:
    try:
        return copy_path(image, "image").exists()
    except OSError:
        return False


def copy_pairs(domain: Domain, pairs: Sequence[Pair]) -> int:
    """Copy some pairs of a domain; the bytes that were written."""
    return sum(chain.from_iterable(_copies(domain, pair) for pair in pairs))


def _copies(domain: Domain, pair: Pair) -> list[int]:
    kind, sizes = label_kind(domain), []
    with suppress(UnreadableFile):
        if not _has_copy(pair.image):
            image = read_image(pair.image, domain.max_pixels)
            write_copy(pair.image, "image", image)
            sizes.append(image.nbytes)
    if pair.label is not None and pair.label.is_file() and not copy_path(pair.label, kind).exists():
        with suppress(UnreadableFile):
            red = kind == "label in red"
            values = read_label_values(pair.label, red_channel=red, max_pixels=domain.max_pixels)
            write_copy(pair.label, kind, values)
            sizes.append(values.nbytes)
    return sizes


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    cv2.setNumThreads(0)  # the processes are the parallelism
