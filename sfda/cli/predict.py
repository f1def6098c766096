"""``sfda predict``: label images of any size with the selected checkpoint of a run."""

import hashlib
import json
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

from sfda.data.errors import UnreadableFile
from sfda.data.images import read_image
from sfda.data.label_spaces import CITYSCAPES19, CITYSCAPES_IDS, IGNORE, ClassSet, Lookup, index_map, load_class_set
from sfda.data.layouts import domains_of
from sfda.data.paths import IMAGE_TYPES, describe_left_out, files_below
from sfda.data.transforms import resize_image
from sfda.drawing import Array, colour
from sfda.errors import UserError
from sfda.files import write_json, write_whole
from sfda.methods import Method
from sfda.methods.kinds.rebuild import build_method
from sfda.networks.finite import refuse_nan
from sfda.progress import progress
from sfda.runs.checkpoints import read_checkpoint
from sfda.runs.run import Run


@dataclass(frozen=True)
class Job:
    """One image and where its predictions go: ``<stem>_<kind>.png``."""

    image: Path
    stem: Path

    def output(self, kind: str) -> Path:
        """Path of one kind of prediction."""
        return self.stem.with_name(f"{self.stem.name}_{kind}.png")


def predict(run: Path, images: Path, out: Path, checkpoint: Path | None = None, *, label_ids: bool = False) -> int:
    """Label an image, or every image below a folder; images that `out` has already are left alone.

    For each image, at its own size: ``_overlay.png``, ``_confidence.png`` (grey, 255 = 1) and, last,
    ``_trainIds.png``. Or, for the official evaluation of Cityscapes, which takes every PNG that is named after an
    image for a prediction, nothing but ``_labelIds.png``. The run's ``config.yaml`` gives the class set and the size
    that images are brought to; ``selected.ckpt`` is the default of `checkpoint`.

    Returns:
        The exit status: 1 where an image cannot be read.

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
    todo = [job for job in jobs if not job.output(kind).exists()]
    console, faults = Console(), 0
    with progress(console, "predicting", len(todo)) as advance:
        for job in todo:
            try:
                _predict_one(method, job, read_image(job.image, max_pixels), size, classes, values)
            except UnreadableFile as fault:
                console.print(Text(f"✗ {fault}", style="red"), soft_wrap=True)
                faults += 1
            advance(1)
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
    found = [path for path in files if path.suffix.lower() in IMAGE_TYPES]
    left_out = describe_left_out([path for path in files if path.suffix.lower() not in IMAGE_TYPES])
    if not found:
        raise UserError(f"--images {images}: no image ({', '.join(IMAGE_TYPES)}) there{left_out and f'; {left_out}'}")
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
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} cannot be read: choose another --out, or move it away") from error
        for key in ("sha256", "classes", "size", "kind"):
            if stored.get(key) != wanted[key]:
                held = f"predictions of {stored.get('checkpoint')} with another {key}"
                raise UserError(f"--out {out} holds {held}: choose another --out, or move it away")
        return
    if taken := [job.output(kind) for job in jobs if job.output(kind).exists()]:
        raise UserError(f"--out {out}: {taken[0]} is there, and no predict.json says of what: choose another --out")
    named = {"names": list(classes.names), "colours": [list(colour) for colour in classes.colours]}
    write_whole(out / "classes.yaml", yaml.safe_dump(named, sort_keys=False, default_flow_style=None).encode())
    write_json(path, wanted)


@torch.inference_mode()
def _predict_one(
    method: Method, job: Job, image: Array, size: tuple[int, int] | None, classes: ClassSet, label_ids: Lookup | None
) -> None:
    resized = np.ascontiguousarray(resize_image(image, size).transpose(2, 0, 1))
    pixels = torch.from_numpy(resized)[None].to(method.device).float() / 255
    probabilities = method.predict_probabilities(pixels, (image.shape[0], image.shape[1]))
    refuse_nan(probabilities, [str(job.image)], "check the checkpoint of the run")
    confidence, prediction = (part.cpu().numpy() for part in probabilities[0].max(dim=0))
    train_ids = prediction.astype(np.uint8)
    if label_ids is not None:
        _write_png(job.output("labelIds"), label_ids[train_ids])
        return
    overlay = cv2.addWeighted(image, 0.5, colour(train_ids, classes), 0.5, 0)
    _write_png(job.output("overlay"), cv2.cvtColor(np.asarray(overlay), cv2.COLOR_RGB2BGR))
    _write_png(job.output("confidence"), np.rint(255 * confidence.clip(0, 1)).astype(np.uint8))
    _write_png(job.output("trainIds"), train_ids)  # last: it says that the image is done


def _write_png(path: Path, pixels: Any) -> None:
    write_whole(path, cv2.imencode(".png", pixels)[1].tobytes())
