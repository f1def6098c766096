"""``sfda export``: the selected checkpoint of a run as one file that needs no sfda, checked before it is kept."""

import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from sfda import __version__
from sfda.data.images import read_image
from sfda.data.label_spaces import CITYSCAPES19, ClassSet, load_class_set, score_groups
from sfda.data.layouts import domains_of
from sfda.data.paths import IMAGE_TYPES, files_below
from sfda.data.photographs import spread
from sfda.data.readers import SegmentationSet
from sfda.data.transforms import resize_image
from sfda.errors import UserError
from sfda.export.formats import WRITERS, Format, load_program, require_packages
from sfda.export.program import ExportedMethod
from sfda.files import writing
from sfda.methods.kinds.rebuild import load_fixed_method
from sfda.runs.run import Run

TOLERANCE = 1e-4
"""Largest difference of a probability between the file and PyTorch."""
CHECKED = 3
"""Images of the run's target that a file is checked with."""
CHECKED_OF_GIVEN = 20
"""Images that a file is checked with at most where a folder of them is given."""
SIZES = ((64, 96), (75, 131), (128, 64))
"""(height, width) of the random images that stand in where there are no others."""

INPUT_IS = (
    "images, float32 (B, 3, H, W): RGB, 0 to 1 (8-bit values / 255); any number of any size, as they are: resizing, "
    "normalisation and padding are in the model"
)
OUTPUT_IS = (
    "probabilities, float32 (B, C, H, W): of the classes of class_names, at the size of the images, sum 1 over C"
)


def export(run: Path, kind: Format, out: Path | None = None, images: Path | None = None) -> int:
    """Write the model of a run to `out`, by default ``model.<kind>`` in the run folder, and compare it with PyTorch.

    It predicts what ``Method.predict_probabilities`` and ``score_probabilities`` do, over the scored classes, the size
    that the run brings images to included.

    Args:
        run: Folder of a finished run.
        kind: ``onnx`` or ``pt2``.
        out: The file.
        images: An image or a folder of images to compare with; default: validation images of the run's target, or
            random ones where it has none.

    Returns:
        The exit status.

    Raises:
        UserError: the run, its method or its network cannot be exported, `out` exists, or the file predicts otherwise.
    """
    path = out or run / f"model.{kind}"
    if path.exists():
        raise UserError(f"{path} exists already: move it away, or give another --out")
    require_packages(kind)
    options = Run(run).data()
    classes = load_class_set(options.get("classes") or CITYSCAPES19.name)
    scored = load_class_set(options.get("score_classes") or classes.name)
    size = tuple(options["size"]) if options.get("size") else None
    method = load_fixed_method(Run(run), len(classes))
    module = ExportedMethod(method, size, score_groups(classes, scored), len(scored)).eval()
    pictures = _pictures(images, options)
    start = time.perf_counter()
    temporary = path.with_name(f".{path.stem}.tmp.{kind}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(module, kind, temporary, describe(Run(run), scored, size))
        seconds = time.perf_counter() - start
        _check(module, kind, temporary, pictures)
        with writing(path):
            temporary.replace(path)
    finally:
        with suppress(OSError):  # there may be no such folder
            temporary.unlink()
    sys.stdout.write(f"{path}: {decimal(path.stat().st_size)}, exported in {seconds:.0f} s\n")
    return 0


def _write(module: ExportedMethod, kind: Format, path: Path, about: dict[str, Any]) -> None:
    try:
        WRITERS[kind](module, path, about)
    except OSError:
        raise
    except Exception as error:  # whatever the exporters raise about a network of anybody's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        other = "pt2" if kind == "onnx" else "onnx"
        raise UserError(
            f"network {about['network']} cannot be exported as {kind}: {reason}; --format {other} may be able to"
        ) from error


def describe(run: Run, classes: ClassSet, size: tuple[int, int] | None) -> dict[str, Any]:
    """What is to be known about a file: what goes in and comes out, the classes, and where it comes from."""
    row, model = run.row(), run.model()
    facts = ("experiment", "method", "seed", "version", "git_commit", "target", "source_free", "labels_read")
    return {
        "input": INPUT_IS,
        "output": OUTPUT_IS,
        "class_names": list(classes.names),
        "class_colours": [list(colour) for colour in classes.colours],
        "network": model["network"],
        "views": model.get("views", "single"),
        "brought_to": size,
        "run": {fact: row.get(fact) for fact in facts},
        "checkpoint_sha256": hashlib.sha256(run.selected.read_bytes()).hexdigest(),
        "exported_by": f"sfda {__version__}, torch {torch.__version__}",
    }


def _pictures(images: Path | None, options: dict[str, Any]) -> list[Path]:
    """The files to check with; none where random images have to do."""
    if images is None:
        try:
            samples = SegmentationSet(domains_of(options)["target"], "val", False, load_class_set("cityscapes19"))
        except UserError:
            return []
        return [pair.image for pair in samples.pairs[:CHECKED]]
    if not images.exists():
        raise UserError(f"--images {images}: no such file or folder")
    files = sorted(files_below(images)) if images.is_dir() else [images]
    found = [path for path in files if path.suffix.lower() in IMAGE_TYPES]
    if not found:
        raise UserError(f"--images {images}: no image ({', '.join(IMAGE_TYPES)}) there")
    return spread(found, CHECKED_OF_GIVEN)


def _tensors(pictures: list[Path]) -> Iterator[Tensor]:
    """(1, 3, H, W) in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    if not pictures:
        yield from (torch.rand(1, 3, *size, generator=random) for size in SIZES)
    for picture in pictures:
        yield torch.from_numpy(read_image(picture)).permute(2, 0, 1)[None].float() / 255


@torch.inference_mode()
def _check(module: ExportedMethod, kind: Format, path: Path, pictures: list[Path]) -> None:
    predict = load_program(kind, path)
    differences, roundings = [], []
    for images in _tensors(pictures):
        expected = module(images)
        differences.append(float((predict(images) - expected).abs().max()))
        if module.size is not None:
            roundings.append(float((_as_predicted(module, images) - expected).abs().max()))
    what = f"{len(differences)} {'images' if pictures else 'random images'}"
    largest = max(differences)
    if not largest <= TOLERANCE:  # NaN neither
        raise UserError(
            f"the {kind} file predicts otherwise than PyTorch: a probability differs by {largest:.1e} on {what}, more "
            f"than {TOLERANCE:g}; it is not kept. "
            + ("--format pt2 may do better" if kind == "onnx" else "another version of PyTorch may do better")
        )
    sys.stdout.write(f"largest difference to PyTorch {largest:.1e} on {what}\n")
    if roundings:
        sys.stdout.write(
            f"`sfda predict` rounds images brought to {'x'.join(map(str, module.size or ()))} to 8 bits, the file does "
            f"not: probabilities differ by up to {max(roundings):.1e}\n"
        )


def _as_predicted(module: ExportedMethod, images: Tensor) -> Tensor:
    """What `sfda predict` has of an image, over the scored classes."""
    picture = np.rint(images[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    brought = torch.from_numpy(resize_image(picture, module.size)).permute(2, 0, 1)[None].float() / 255
    return module.scored(module.method.predict_probabilities(brought, (images.shape[-2], images.shape[-1])))
