"""``sfda predict``: label images of any size, and videos, with the selected checkpoint of a run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from rich.console import Console
from rich.text import Text

from sfda.cli.predict_video import VIDEO_TYPES, count_frames, draw_video
from sfda.cli.predict_windows import label_image
from sfda.data.errors import UnreadableFile
from sfda.data.images import read_image, read_label_values
from sfda.data.label_spaces import CITYSCAPES19, CITYSCAPES_IDS, IGNORE, ClassSet, Lookup, index_map, load_class_set
from sfda.data.layouts import domains_of
from sfda.data.paths import IMAGE_TYPES, describe_left_out, files_below
from sfda.drawing import Array, colour
from sfda.errors import UserError
from sfda.files import read_json, write_json, write_whole
from sfda.methods import Method
from sfda.methods.kinds.rebuild import build_method
from sfda.progress import progress
from sfda.runs.checkpoints import read_checkpoint
from sfda.runs.run import Run


@dataclass(frozen=True)
class Job:
    """One image, or video, and where its predictions go: ``<stem>_<kind>.png``; of a video see `_predict_video`."""

    image: Path
    stem: Path

    def output(self, kind: str) -> Path:
        """Path of one kind of prediction."""
        return self.stem.with_name(f"{self.stem.name}_{kind}.png")

    @property
    def is_video(self) -> bool:
        """Whether the file is taken for a video."""
        return self.image.suffix.lower() in VIDEO_TYPES

    def last(self, kind: str) -> Path:
        """The file that is written last, and so says that all is done."""
        return self.stem.with_name(f"{self.stem.name}_overlay.mp4") if self.is_video else self.output(kind)


def predict(run: Path, images: Path, out: Path, checkpoint: Path | None = None, *, label_ids: bool = False) -> int:
    """Label an image, or every image and video below a folder; those that `out` has already are left alone.

    For each image, at its own size: ``_overlay.png``, ``_confidence.png`` (grey, 255 = 1) and, last,
    ``_trainIds.png``. Or, for the official evaluation of Cityscapes, which takes every PNG that is named after an
    image for a prediction, nothing but ``_labelIds.png``, and of no video. For each video, ``_overlay.mp4`` and a
    folder of its frames' train ids, see `_predict_video`. The run's ``config.yaml`` gives the class set and the size
    that images are brought to; ``selected.ckpt`` is the default of `checkpoint`.

    Returns:
        The exit status: 1 where an image or a video cannot be read.

    Raises:
        UserError: the run, its checkpoint or the images cannot be used, or `out` holds other predictions.
    """
    options = Run(run).data()
    classes = load_class_set(options.get("classes") or CITYSCAPES19.name)
    values = label_ids_of(classes) if label_ids else None
    kind = "trainIds" if values is None else "labelIds"
    jobs = _jobs(images, out, label_ids)
    path = checkpoint or Run(run).selected
    method = load_method(path, {**Run(run).model(), "num_classes": len(classes)})
    _claim(out, path, classes, options.get("size"), kind, jobs)
    max_pixels = domains_of(options)["target"].max_pixels
    size = tuple(options["size"]) if options.get("size") else None
    todo = [job for job in jobs if not job.last(kind).exists()]
    console, faults = Console(), 0
    lengths = [count_frames(job.image) if job.is_video else 1 for job in todo]
    with progress(console, "predicting", sum(lengths)) as advance:
        for job, length in zip(todo, lengths, strict=True):
            try:
                if job.is_video:
                    _predict_video(method, job, size, classes)
                else:
                    _predict_one(method, job, read_image(job.image, max_pixels), size, classes, values)
            except UnreadableFile as fault:
                console.print(Text(f"✗ {fault}", style="red"), soft_wrap=True)
                faults += 1
            advance(length)
    counts = f"{len(todo) - faults} predicted, {len(jobs) - len(todo)} there already, {faults} unreadable"
    console.print(f"{counts}; *_{kind}.png are in {out}", highlight=False, soft_wrap=True)
    return 1 if faults else 0


def load_method(path: Path, said: Mapping[str, Any]) -> Method:
    """The method of a checkpoint, ready to predict, on the GPU if there is one; see `build_method`."""
    method = build_method(read_checkpoint(str(path)), said, str(path))
    return method.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def label_ids_of(classes: ClassSet) -> Lookup:
    """Cityscapes label id of each train id of `classes`: (C,) uint8.

    Raises:
        UserError: `classes` are groups of classes, or others than those of Cityscapes.
    """
    places = index_map(classes, CITYSCAPES19)
    if (places == IGNORE).any():
        raise UserError(f"--label-ids: the class set {classes.name!r} has classes that Cityscapes does not have")
    label_of = {train_id: label_id for label_id, train_id in CITYSCAPES_IDS.items()}
    return np.array([label_of[place] for place in places.tolist()], dtype=np.uint8)


def _jobs(images: Path, out: Path, label_ids: bool) -> list[Job]:
    if not images.exists():
        raise UserError(f"--images {images}: no such file or folder")
    if images.resolve() == out.resolve() or out.is_file():
        raise UserError(f"--out {out}: must be a folder, and another one than that of the images")
    folder = images if images.is_dir() else images.parent
    # Without `out`: predictions of an earlier call are no images to predict.
    files = sorted(files_below(images, without=out)) if images.is_dir() else [images]
    types = IMAGE_TYPES if label_ids else (*IMAGE_TYPES, *VIDEO_TYPES)
    found = [path for path in files if path.suffix.lower() in types]
    left_out = describe_left_out([path for path in files if path.suffix.lower() not in types])
    if not found:
        raise UserError(
            f"--images {images}: no image or video ({', '.join(types)}) there{left_out and f'; {left_out}'}"
        )
    if left_out:
        Console().print(Text(left_out, style="yellow"), soft_wrap=True)
    jobs: dict[Path, Job] = {}
    for path in found:
        name = path.stem.removesuffix("_leftImg8bit") if label_ids else path.stem
        stem = out / path.parent.relative_to(folder) / name
        if stem in jobs:
            raise UserError(f"{jobs[stem].image} and {path} would give the same file {stem.name}_*.png: rename one")
        jobs[stem] = Job(path, stem)
    return list(jobs.values())


def _claim(
    out: Path, checkpoint: Path, classes: ClassSet, size: Sequence[int] | None, kind: str, jobs: Sequence[Job]
) -> None:
    """Say in ``predict.json`` whose predictions the folder holds, so that no others are ever mixed in."""
    wanted = {
        "checkpoint": str(checkpoint),
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "classes": list(classes.names),
        "size": size,
        "kind": kind,
    }
    path = out / "predict.json"
    if path.exists():
        stored = read_json(path)
        for key in ("sha256", "classes", "size", "kind"):
            if stored.get(key) != wanted[key]:
                held = f"predictions of {stored.get('checkpoint')} with another {key}"
                raise UserError(f"--out {out} holds {held}: choose another --out, or move it away")
        return
    if taken := [job.last(kind) for job in jobs if job.last(kind).exists()]:
        raise UserError(f"--out {out}: {taken[0]} is there, and no predict.json says of what: choose another --out")
    named = {"names": list(classes.names), "colours": [list(colour) for colour in classes.colours]}
    write_whole(out / "classes.yaml", yaml.safe_dump(named, sort_keys=False, default_flow_style=None).encode())
    write_json(path, wanted)


@torch.inference_mode()
def _predict_one(
    method: Method, job: Job, image: Array, size: tuple[int, int] | None, classes: ClassSet, label_ids: Lookup | None
) -> None:
    confidence, train_ids = label_image(method, image, size, str(job.image))
    if label_ids is not None:
        _write_png(job.output("labelIds"), label_ids[train_ids])
        return
    _write_png(job.output("overlay"), cv2.cvtColor(_overlay(image, train_ids, classes), cv2.COLOR_RGB2BGR))
    _write_png(job.output("confidence"), np.rint(255 * confidence.clip(0, 1)).astype(np.uint8))
    _write_png(job.output("trainIds"), train_ids)  # last: it says that the image is done


@torch.inference_mode()
def _predict_video(method: Method, job: Job, size: tuple[int, int] | None, classes: ClassSet) -> None:
    """``<stem>/000123_trainIds.png`` of every frame, from 0, and, last, ``<stem>_overlay.mp4``.

    Frames that are there already, of a call that was interrupted, are not predicted again.
    """

    def draw(number: int, frame: Array) -> Array:
        path = job.stem / f"{number:06d}_trainIds.png"
        if path.exists():
            train_ids = np.asarray(read_label_values(path), dtype=np.uint8)
        else:
            _, train_ids = label_image(method, frame, size, f"{job.image}, frame {number}")
            _write_png(path, train_ids)
        return _overlay(frame, train_ids, classes)

    draw_video(job.image, job.last("trainIds"), draw)


def _overlay(image: Array, train_ids: Array, classes: ClassSet) -> Array:
    return np.asarray(cv2.addWeighted(image, 0.5, colour(train_ids, classes), 0.5, 0), dtype=np.uint8)


def _write_png(path: Path, pixels: Any) -> None:
    write_whole(path, cv2.imencode(".png", pixels)[1].tobytes())
