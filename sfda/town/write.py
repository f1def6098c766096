"""Writes the town to disk in the layouts of GTA5, SYNTHIA-RAND-CITYSCAPES and Cityscapes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sfda.data.label_spaces import CITYSCAPES19, CITYSCAPES_IDS, IGNORE, SYNTHIA_IDS
from sfda.errors import UserError
from sfda.files import write_whole
from sfda.progress import ShowProgress, no_progress
from sfda.town.shade import WEATHERS
from sfda.town.town import render, style_of

Pixels = npt.NDArray[np.uint8]
Counts = Mapping[str, Mapping[str, int]]

MANIFEST = "streets.json"
BEGUN = "streets.begun.json"  # there while a town is being written: what `MANIFEST` will say
WORKERS = 2
DEFAULT_COUNTS: Counts = {
    "gta5": {"train": 600, "val": 100},
    "synthia": {"train": 600, "val": 100},
    "cityscapes": {"train": 300, "val": 100},
    "drift": {"val": 120},
}
DRIFT = "drift"  # the target's streets by day, then at dusk, then in fog: a folder of Cityscapes' layout a weather
CITIES = {"train": ("amberg", "brueckstadt", "cornau", "dornheim"), "val": ("eschfurt", "falkenau")}
EGO_VEHICLE, VOID = 1, 0
_write = partial(write_whole, shared=True)  # two commands may find the same town missing


@dataclass(frozen=True)
class _Job:
    """One scene, and where its image and its label file go."""

    domain: str
    split: str
    index: int
    image: Path
    label: Path
    weather: str = "day"


def write_streets(
    root: str | Path,
    preset: str = "streets-v1",
    height: int = 128,
    width: int = 256,
    counts: Counts | None = None,
    domains: Sequence[str] = tuple(DEFAULT_COUNTS),
    show_progress: ShowProgress = no_progress,
) -> None:
    """Writes the domains below `root`, each in the layout of the data set that it is named after.

    ``drift`` is a fourth one, in the layout of Cityscapes: streets of the target by day, at dusk and in fog, in this
    order, for methods that follow a changing target.

    A complete town is left alone; one whose writing was interrupted is completed. Files of others are never touched.

    Args:
        root: Folder, made if missing.
        preset: Name of the town.
        height: Rows of every image.
        width: Columns of every image.
        counts: Domain → split (``train``, ``val``) → number of scenes; a domain that is missing has its default.
        domains: Which domains to write.
        show_progress: Shows how many of the missing scenes are drawn.

    Raises:
        UserError: unknown preset, domain or split; or `root` holds something else already.
    """
    root = Path(root)
    wanted = _wanted(preset, domains, counts or {})
    manifest = {"preset": preset, "height": height, "width": width, "counts": wanted}
    if _is_complete(root, manifest):
        return
    jobs = list(_jobs(root, wanted))
    missing = [job for job in jobs if not (job.image.is_file() and job.label.is_file())]
    work = partial(_write_scene, preset=preset, height=height, width=width)
    # Fresh processes, not forks: a fork would inherit locks held by threads of the caller's libraries.
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(WORKERS, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool,
        show_progress("drawing streets", len(missing)) as advance,
    ):
        for _ in pool.map(work, missing, chunksize=8):
            advance(1)
    _write_splits(root, jobs)
    _write(root / MANIFEST, _as_json(manifest))
    (root / BEGUN).unlink(missing_ok=True)


def _wanted(preset: str, domains: Sequence[str], counts: Counts) -> dict[str, dict[str, int]]:
    for domain in (*domains, *counts):
        style_of(preset, _style_name(domain))
    wanted = {domain: counts.get(domain, default) for domain, default in DEFAULT_COUNTS.items() if domain in domains}
    if unknown := {split for splits in wanted.values() for split in splits} - set(CITIES):
        raise UserError(f"streets counts: unknown splits {sorted(unknown)}; known are {', '.join(CITIES)}")
    # One order, whatever the caller's: numbers of files and the manifest depend on it.
    return {domain: {split: splits[split] for split in CITIES if split in splits} for domain, splits in wanted.items()}


def _is_complete(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether all is there already; if not, marks the root as being written.

    Raises:
        UserError: the root holds another town, or data that is not of this town at all.
    """
    for path in (root / MANIFEST, root / BEGUN):
        if not path.is_file():
            continue
        found = path.read_bytes()
        if found != _as_json(manifest):
            town = " ".join(found.decode(errors="replace").split())
            raise UserError(f"{path}: another town is there ({town}): choose another --out, or delete that folder")
        return path.name == MANIFEST
    if taken := [domain for domain in manifest["counts"] if (root / domain).exists()]:
        raise UserError(f"{root / taken[0]}: exists and was not written as a town: choose another --out, or move it")
    _write(root / BEGUN, _as_json(manifest))
    return False


def _jobs(root: Path, wanted: Counts) -> Iterator[_Job]:
    for domain, splits in wanted.items():
        number = 0
        for split, count in splits.items():
            for index in range(count):
                weather = WEATHERS[index * len(WEATHERS) // count] if domain == DRIFT else "day"
                image, label = _places(domain, split, index, number, weather)
                yield _Job(domain, split, index, root / domain / image, root / domain / label, weather)
                number += 1


def _style_name(domain: str) -> str:
    return "cityscapes" if domain == DRIFT else domain


def _places(domain: str, split: str, index: int, number: int, weather: str) -> tuple[str, str]:
    if domain == "gta5":
        return f"images/{number + 1:05d}.png", f"labels/{number + 1:05d}.png"
    if domain == "synthia":
        return f"RGB/{number:07d}.png", f"GT/LABELS/{number:07d}.png"
    cities = (weather,) if domain == DRIFT else CITIES[split]
    city = cities[index % len(cities)]
    stem = f"{split}/{city}/{city}_{index // len(cities):06d}_000019"
    return f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"


def _write_scene(job: _Job, preset: str, height: int, width: int) -> None:
    domain = _style_name(job.domain)
    split = DRIFT if job.domain == DRIFT else job.split  # streets of its own
    image, labels = render(domain, split, job.index, height, width, preset, job.weather)
    encode = {"gta5": _gta5_label, "synthia": _synthia_label, "cityscapes": _cityscapes_label}[domain]
    _write(job.label, encode(labels))
    _write(job.image, _png(image[..., ::-1]))


def _ids(labels: Pixels, train_ids: Mapping[int, int], ignored: int) -> Pixels:
    """Train ids → the ids of a data set."""
    lookup = np.full(256, ignored, np.uint8)
    for label_id, train_id in train_ids.items():
        lookup[train_id] = label_id
    return lookup[labels]


def _gta5_label(labels: Pixels) -> bytes:
    image = Image.fromarray(_ids(labels, CITYSCAPES_IDS, EGO_VEHICLE), mode="P")
    palette = np.zeros((256, 3), np.uint8)
    for label_id, train_id in CITYSCAPES_IDS.items():
        palette[label_id] = CITYSCAPES19.colours[train_id]
    image.putpalette(palette.tobytes())
    stream = BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _synthia_label(labels: Pixels) -> bytes:
    # OpenCV writes blue, green, red: the class, first in the file, stands last here.
    things = (labels >= CITYSCAPES19.names.index("person")) & (labels != IGNORE)
    instances = cv2.connectedComponents(things.astype(np.uint8))[1]
    channels = np.zeros((*labels.shape, 3), np.uint16)
    channels[..., 2] = _ids(labels, SYNTHIA_IDS, VOID)
    channels[..., 1] = instances
    return _png(channels)


def _cityscapes_label(labels: Pixels) -> bytes:
    return _png(_ids(labels, CITYSCAPES_IDS, EGO_VEHICLE))


def _png(pixels: npt.NDArray[Any]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _write_splits(root: Path, jobs: Sequence[_Job]) -> None:
    for domain, split in dict.fromkeys((job.domain, job.split) for job in jobs):
        if _style_name(domain) != "cityscapes":
            names = [job.image.name for job in jobs if (job.domain, job.split) == (domain, split)]
            _write(root / domain / f"{split}.txt", "".join(f"{name}\n" for name in names).encode())


def _as_json(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()
