"""A split of a data set as images and label maps in the class set that is wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sfda.data.errors import BadPair, UnreadableFile
from sfda.data.formats import ORIENTATIONS
from sfda.data.images import Picture, read_image, read_label_values, read_orientation
from sfda.data.label_spaces import (
    CITYSCAPES19,
    IGNORE,
    SYNTHIA_IDS,
    ClassSet,
    Lookup,
    index_map,
    load_class_set,
)
from sfda.data.layouts import Domain, Split, read_pairs
from sfda.errors import UserError

__all__ = ["FAULT", "Domain", "Sample", "SegmentationSet", "class_set_of_files", "labels_in", "read_label"]

FAULT = 254
"""Entry of a lookup table for values that have no meaning in the data set: a class set has at most 254 classes."""

_SYNTHIA = ClassSet(
    name="synthia",
    names=CITYSCAPES19.names,
    colours=CITYSCAPES19.colours,
    ids=SYNTHIA_IDS,
    ignore=frozenset(range(23)) - frozenset(SYNTHIA_IDS),
)
# The licence plate is 34 in the list of GTA5, and -1 in that of Cityscapes, whose 8-bit files have it as 255.
_GTA5 = replace(CITYSCAPES19, name="gta5", ignore=CITYSCAPES19.ignore | {34})


@dataclass(frozen=True)
class Sample:
    """One pair in memory.

    Attributes:
        name: Name of the pair, unique in its split.
        image: (H, W, 3) uint8 RGB, 0-255.
        label: (H, W) uint8, index in the wanted class set or 255; None where labels are not asked for.
    """

    name: str
    image: Picture
    label: npt.NDArray[np.uint8] | None


def labels_in(domain: Domain, wanted: ClassSet) -> Lookup:
    """What a value in a label file of `domain` is in the class set `wanted`.

    Returns:
        (65536,) uint8: value → index in `wanted`, 255 where it takes part in nothing, `FAULT` where the value has no
        meaning in the data set.

    Raises:
        UserError: a `folder` does not say what its values mean, or the two class sets have nothing in common.
    """
    own = class_set_of_files(domain)
    table = np.full(2**16, FAULT, dtype=np.uint8)
    table[list(own.ignore)] = IGNORE
    table[list(own.ids)] = index_map(own, wanted)[list(own.ids.values())]
    return table


def class_set_of_files(domain: Domain) -> ClassSet:
    """The class set in which the label files of `domain` are written.

    Raises:
        UserError: a `folder` does not say which, or its class set cannot be read.
    """
    if domain.layout == "synthia":
        return _SYNTHIA
    if domain.layout != "folder":
        return _GTA5 if domain.layout == "gta5" else CITYSCAPES19
    if domain.classes is None:
        raise UserError(f"{domain.root}: set `classes` to the class set (a name or a YAML file) of its label files")
    return load_class_set(domain.classes)


class SegmentationSet:
    """One split of a data set, read pair by pair; nothing is written beside the files.

    Args:
        domain: The data set.
        split: Its part.
        with_labels: Whether labels are read. If not, nothing under the label folder is touched.
        class_set: The class set in which labels are wanted.

    Raises:
        UserError: the data set is not as its layout says, see `read_pairs` and `labels_in`.
    """

    def __init__(self, domain: Domain, split: Split, with_labels: bool, class_set: ClassSet) -> None:
        self.domain = domain
        self.pairs = read_pairs(domain, split, with_labels)
        self.with_labels = with_labels
        self._table = labels_in(domain, class_set) if with_labels else None

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """The pair at `index`.

        Raises:
            BadPair: it cannot be used: unreadable, a missing label, other sizes, values without a meaning.
        """
        pair = self.pairs[index]
        try:
            image = read_image(pair.image, self.domain.max_pixels)
            label = None
            if pair.label is not None:
                assert self._table is not None
                label = read_label(pair.label, self.domain, self._table, pair.image, image.shape[:2])
        except UnreadableFile as error:
            raise BadPair(pair.name, error.path, error.reason) from error
        return Sample(pair.name, image, label)


def read_label(
    path: Path, domain: Domain, table: Lookup, image: Path, image_size: tuple[int, ...] | None
) -> npt.NDArray[np.uint8]:
    """One label map: (H, W) uint8, values looked up in the `table` of `labels_in`.

    Args:
        path: The label file.
        domain: The data set it belongs to.
        table: Value → index in the wanted class set.
        image: The image that it is the label of.
        image_size: (H, W) of the image, which the label must share; None where it is not known.

    Raises:
        UnreadableFile: it cannot be decoded, has another size than its image, or values without a meaning.
    """
    values = read_label_values(path, red_channel=domain.layout == "synthia", max_pixels=domain.max_pixels)
    if image_size is not None and values.shape != image_size:
        raise UnreadableFile(path, _size_fault(image, image_size, values.shape))
    label = table[values]
    if (label == FAULT).any():
        raise UnreadableFile(path, _value_fault(domain, np.unique(values[label == FAULT])))
    return label


def _value_fault(domain: Domain, values: npt.NDArray[np.integer]) -> str:
    shown = ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
    if domain.layout == "folder":
        return f"values without a class: {shown}; add them to `ids` or `ignore` of {domain.classes}"
    return f"values that `{domain.layout}` does not have: {shown}; is this its label file, unconverted?"


def _size_fault(image: Path, image_size: tuple[int, ...], label_size: tuple[int, ...]) -> str:
    fault = f"image {_size(image_size)} and label {_size(label_size)} (height x width) differ in size"
    if label_size != image_size[::-1] or (orientation := read_orientation(image)) <= 4:
        return fault
    return (
        f"{fault}: the image has EXIF orientation {orientation} (viewers show it {ORIENTATIONS[orientation]}), its "
        "label seems to be drawn on the stored pixels: save the label turned likewise, or remove the orientation from "
        f"the image (exiftool -Orientation= {image})"
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
