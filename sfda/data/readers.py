"""A split of a data set as images and label maps in the class set that is wanted."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from sfda.data.cache import What, read_copy
from sfda.data.errors import BadPair, UnreadableFile
from sfda.data.formats import ORIENTATIONS
from sfda.data.images import LabelValues, Picture, read_image, read_label_values, read_orientation
from sfda.data.label_spaces import (
    CITYSCAPES19,
    IGNORE,
    NAMED,
    ClassSet,
    Lookup,
    in_train_ids,
    index_map,
    load_class_set,
)
from sfda.data.layouts import Domain, layout_of
from sfda.data.pairs import read_pairs
from sfda.data.splits import Split
from sfda.errors import UserError

FAULT = 254
"""Entry of a lookup table for values that have no meaning in the data set: a class set has at most 254 classes."""


@dataclass(frozen=True)
class Sample:
    """One pair in memory."""

    name: str  # unique in its split
    image: Picture  # (H, W, 3) RGB, 0-255
    label: npt.NDArray[np.uint8] | None  # (H, W), index in the wanted class set or 255; None where not asked for


def labels_in(domain: Domain, wanted: ClassSet) -> Lookup:
    """What a value in a label file of `domain` is in the class set `wanted`: a table (65536,) uint8.

    It has 255 for what takes part in nothing, and `FAULT` for values without a meaning in the data set.

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
        UserError: a `folder` does not say which, its class set cannot be read, or is a YAML file beside `label_values`.
    """
    classes = layout_of(domain).classes
    if classes is None:
        if domain.classes is None:
            raise UserError(f"{domain.root}: set `classes` to the class set (a name or a YAML file) of its label files")
        classes = load_class_set(domain.classes)
    if domain.label_values == "label_ids":
        return classes
    if not _has_cityscapes_ids(domain):
        raise UserError(
            f"{domain.root}: `label_values` is for class sets known by name ({', '.join(NAMED)}); leave it out: "
            f"`ids` of {domain.classes} say what the values in its label files mean"
        )
    return in_train_ids(classes)


def _has_cityscapes_ids(domain: Domain) -> bool:
    layout = layout_of(domain)
    return "label_values" in layout.options and (layout.classes is not None or domain.classes in NAMED)


class SegmentationSet:
    """One split of a data set, read pair by pair, from the copies of `sfda data cache` where there are any.

    Labels come in `class_set`; without them (`with_labels`), nothing under the label folder is touched.

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
            image = read_copy(pair.image, "image", self.domain.max_pixels)
            if image is None:
                image = read_image(pair.image, self.domain.max_pixels)
            label = None
            if pair.label is not None:
                assert self._table is not None
                values = read_values(pair.label, self.domain, pair.image, image.shape[:2])
                label = look_up(values, self._table, pair.label, self.domain)
        except UnreadableFile as error:
            raise BadPair(pair.name, error.path, error.reason) from error
        return Sample(pair.name, image, label)

    def train_ids_suspected(self, files: int = 8) -> str | None:
        """`train_ids_suspected` of the first label files; none is opened where labels are not read."""
        pixels = np.zeros(256, dtype=np.int64)
        if _has_cityscapes_ids(self.domain):
            for path in [pair.label for pair in self.pairs[:files] if pair.label is not None]:
                with suppress(UnreadableFile):  # named when its pair is read
                    pixels += count_values(read_label_values(path, max_pixels=self.domain.max_pixels))
        return train_ids_suspected(self.domain, pixels)


def refuse_train_ids(labelled: SegmentationSet, advice: str) -> None:
    """Stop where label maps that a command was given seem to hold train ids instead of label ids.

    Raises:
        UserError: they do; it ends with `advice`.
    """
    if labelled.train_ids_suspected() is not None:
        text = "look as if they held train ids (0-18, 255), not Cityscapes label ids"
        raise UserError(f"--labels: the label maps {text}: {advice}")


def count_values(values: LabelValues) -> npt.NDArray[np.int64]:
    """(256,) pixels of each value 0-255."""
    return np.bincount(values.ravel(), minlength=256)[:256]


def train_ids_suspected(domain: Domain, pixels: npt.NDArray[np.int64]) -> str | None:
    """Says so where label files that ought to hold Cityscapes label ids look as if they held train ids.

    In label ids 0 to 6 are ignored; in train ids they are road to traffic light, most of a street. Of 19 to 33, which
    train ids do not have, vegetation, sky and cars are on every street. `pixels` (256,) are those of each value, over
    some of the label files.
    """
    if not _has_cityscapes_ids(domain) or domain.label_values == "train_ids":
        return None
    if pixels[len(CITYSCAPES19) : IGNORE].any() or 3 * pixels[:7].sum() <= pixels.sum():
        return None
    return (
        "the label files look as if they held train ids (0-18, 255) rather than label ids: more than a third of their "
        "pixels are 0 to 6, which label ids ignore, and none is 19 to 33. If they do, set `label_values: train_ids` "
        "for this domain"
    )


def label_kind(domain: Domain) -> What:
    """How the label files of a domain are decoded."""
    return "label in red" if layout_of(domain).red_channel else "label"


def read_values(path: Path, domain: Domain, image: Path, image_size: tuple[int, ...] | None) -> LabelValues:
    """The values of the label map of `image` as they stand in the file `path`: (H, W) uint8 or uint16.

    Raises:
        UnreadableFile: it cannot be decoded, or has another size than its image.
    """
    values = read_copy(path, label_kind(domain), domain.max_pixels)
    if values is None:
        values = read_label_values(path, red_channel=layout_of(domain).red_channel, max_pixels=domain.max_pixels)
    if image_size is not None and values.shape != image_size:
        raise UnreadableFile(path, _size_fault(image, image_size, values.shape))
    return values


def look_up(values: LabelValues, table: Lookup, path: Path, domain: Domain) -> npt.NDArray[np.uint8]:
    """Values of a label file in the `table` of `labels_in`: (H, W) uint8.

    Raises:
        UnreadableFile: the file at `path` has values without a meaning in `domain`.
    """
    label = cv2.LUT(values, table[:256]) if values.dtype == np.uint8 else table[values]  # the same, twice as fast
    if (label == FAULT).any():
        raise UnreadableFile(path, _value_fault(domain, np.unique(values[label == FAULT])))
    return label


def _value_fault(domain: Domain, values: npt.NDArray[np.integer]) -> str:
    shown = ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
    if domain.label_values == "train_ids":
        return f"values that are no train ids: {shown}; leave out `label_values: train_ids` if they are label ids"
    if domain.classes is not None:
        return f"values without a class: {shown}; add them to `ids` or `ignore` of {domain.classes}"
    return f"values that `{domain.layout}` does not have: {shown}; is this its label file, unconverted?"


def _size_fault(image: Path, image_size: tuple[int, ...], label_size: tuple[int, ...]) -> str:
    sizes = [f"{height}x{width}" for height, width in (image_size, label_size)]
    fault = f"image {sizes[0]} and label {sizes[1]} (height x width) differ in size"
    if label_size != image_size[::-1] or (orientation := read_orientation(image)) <= 4:
        return fault
    return (
        f"{fault}: the image has EXIF orientation {orientation} (viewers show it {ORIENTATIONS[orientation]}), its "
        "label seems to be drawn on the stored pixels: save the label turned likewise, or remove the orientation from "
        f"the image (exiftool -Orientation= {image})"
    )
