"""What a scored run keeps of each image: numbers of all, small pictures of some. Needs no torch."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfda.data.label_spaces import IGNORE, ClassSet
from sfda.errors import UserError
from sfda.files import write_whole

NAME = "images_target.zip"
KINDS = {"image": "jpg", "truth": "png", "prediction": "png", "confidence": "jpg"}
"""What is drawn of an image, and the format in which it is kept."""
WIDTH = 480
"""Width of a picture at most, in pixels."""

Values = npt.NDArray[np.float64]
Pictures = dict[str, bytes]
"""Kind, of `KINDS`, → the encoded picture; label maps are palette images whose values are classes, or 255."""


@dataclass
class Records:
    """Of one run on the validation images of its target.

    Attributes:
        classes: Names and colours (R, G, B) of the C scored classes, in order.
        names: Of the N images.
        confusion: Per image, rows = labels: (N, C, C); None where no label was read.
        mass: Pixels predicted as each class: (N, C).
        entropy: Mean entropy of a pixel, in nats: (N,).
        bins: Count, Σ confidence and Σ correct by fine right-closed confidence bin: (3, bins); None without labels.
        pictures: Of some images, by name.
    """

    classes: dict[str, tuple[int, int, int]]
    names: list[str]
    confusion: Values | None
    mass: Values
    entropy: Values
    bins: Values | None = None
    pictures: dict[str, Pictures] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        arrays: dict[str, Any] = {"names": np.array(self.names), "mass": self.mass, "entropy": self.entropy}
        arrays |= {"classes": np.array(list(self.classes)), "colours": np.array(list(self.classes.values()), np.uint8)}
        if self.confusion is not None:
            arrays["confusion"] = self.confusion
        if self.bins is not None:
            arrays["bins"] = self.bins
        numbers, file = io.BytesIO(), io.BytesIO()
        np.savez_compressed(numbers, **arrays)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("numbers.npz", numbers.getvalue())
            for name, pictures in self.pictures.items():
                for kind, content in pictures.items():
                    archive.writestr(f"{name}/{kind}.{KINDS[kind]}", content)
        write_whole(path, file.getbuffer())


def read_records(folder: Path) -> Records | None:
    """The records of a run folder; None where it has none, since an older version scored it.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            with np.load(io.BytesIO(archive.read("numbers.npz")), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            pictures: dict[str, Pictures] = {}
            for member in archive.namelist():
                name, _, kind = member.rpartition("/")
                if name:
                    pictures.setdefault(name, {})[kind.partition(".")[0]] = archive.read(member)
        colours = [(int(r), int(g), int(b)) for r, g, b in arrays["colours"]]
        return Records(
            dict(zip(arrays["classes"].tolist(), colours, strict=True)),
            arrays["names"].tolist(),
            arrays.get("confusion"),
            arrays["mass"],
            arrays["entropy"],
            arrays.get("bins"),
            pictures,
        )
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}): score the run again with `sfda validate --run {folder}`"
        ) from error


def draw_pictures(panels: Mapping[str, npt.NDArray[np.uint8]], classes: ClassSet) -> Pictures:
    """Encode panels of one image, each brought to one small size.

    Args:
        panels: By kind: ``image`` (H, W, 3), ``truth`` and ``prediction`` (H, W) class or 255, ``confidence`` (H, W).
        classes: Names and colours.
    """
    height, width = panels["prediction"].shape
    scale = min(1.0, WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return {kind: _encode(kind, panel, size, classes) for kind, panel in panels.items()}


def _encode(kind: str, panel: npt.NDArray[np.uint8], size: tuple[int, int], classes: ClassSet) -> bytes:
    is_label = kind in ("truth", "prediction")
    picture = Image.fromarray(panel).resize(size, Image.Resampling.NEAREST if is_label else Image.Resampling.BOX)
    file = io.BytesIO()
    if is_label:
        picture = picture.convert("L")
        picture.putpalette(_palette(classes))
        picture.save(file, "png", optimize=True)
    else:
        picture.save(file, "jpeg", quality=80)
    return file.getvalue()


def _palette(classes: ClassSet) -> list[int]:
    table = np.zeros((IGNORE + 1, 3), dtype=np.uint8)
    table[: len(classes)] = classes.colours
    return [int(value) for value in table.flatten()]


def label_map(picture: bytes) -> npt.NDArray[np.uint8]:
    """Classes (h, w) of a kept label map."""
    return np.asarray(Image.open(io.BytesIO(picture)), dtype=np.uint8)


def rgb(picture: bytes) -> npt.NDArray[np.uint8]:
    """Any kept picture in colours, (h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.uint8)
