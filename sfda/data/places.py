"""Where the images and the labels of a split lie, as the layout of the data set says; no file is opened here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from sfda.data.layouts import Domain, layout_of
from sfda.data.paths import IMAGE_TYPES, describe_left_out, expand_path, files_below
from sfda.data.splits import Split
from sfda.errors import UserError


@dataclass(frozen=True)
class Place:
    """The images or the labels of a split: a pattern of `Layout`, filled in.

    Files lie in `folder`, or as deep below it as `inside` says; a part `<…>` stands for every folder. `fallback` is a
    suffix that is read where no file has `suffix`.
    """

    root: Path
    relative: Path
    inside: tuple[str, ...]
    suffix: str
    types: tuple[str, ...] = IMAGE_TYPES
    instead: tuple[str, ...] = ()
    version: str = ""
    train_ids: str = ""
    fallback: str = ""

    @property
    def folder(self) -> Path:
        """The folder, ``<…>`` as it is, for messages."""
        return self.root / self.relative

    @property
    def pattern(self) -> str:
        """What its files are named like, without the type."""
        return "/".join((*self.inside, f"*{self.suffix}"))

    def folders(self) -> list[Path]:
        """The folders that are there, in the order of their names."""
        found = [self.root] if self.root.is_dir() else []
        for part in self.relative.parts:
            found = [deeper for folder in found for deeper in _enter(folder, part)]
        return found

    def files(self) -> Iterator[Path]:
        """All files in the folders, and as far below them as files may lie, whatever they are."""
        return (path for folder in self.folders() for path in files_below(folder, levels=len(self.inside)))

    def name_of(self, path: Path) -> str | None:
        """The name of the pair that one of `files` belongs to; None where its place, its type or its name is wrong."""
        above = len(path.parent.parts) < len(self.folder.parts) + len(self.inside)
        if above or path.suffix.lower() not in self.types:
            return None
        if path.stem.endswith(self.suffix):
            return path.stem.removesuffix(self.suffix)
        return path.stem if self.version and re.search(self.version, path.stem) else None

    def frame(self, name: str) -> str:
        """The name that the label of the image `name` has."""
        return re.split(self.version, name)[0] if self.version else name

    def beside(self, image: Path, images: Place) -> Path:
        """The folder in which the label of an image has its place."""
        chosen = dict(zip((*images.folder.parts, *images.inside), image.parent.parts, strict=True))
        return Path(*(chosen[part] if _is_any(part) else part for part in (*self.folder.parts, *self.inside)))


def _is_any(part: str) -> bool:
    return part.startswith("<")


def _enter(folder: Path, part: str) -> list[Path]:
    """The folders that one part of a pattern stands for."""
    if not _is_any(part):
        return [folder / part] if (folder / part).is_dir() else []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def places(domain: Domain, split: Split) -> tuple[Place, Place]:
    """Where the images and the labels of a split lie.

    Raises:
        UserError: the layout is not known, or the root holds Cityscapes in fog and in rain.
    """
    layout = layout_of(domain)
    images = replace(_fill_in(layout.images, domain, split), instead=layout.instead, version=layout.version)
    labels = replace(_fill_in(layout.labels, domain, split), types=(".png",), train_ids=layout.train_ids)
    if layout.train_ids and domain.label_values == "train_ids":
        labels = replace(labels, suffix=labels.train_ids, fallback=labels.suffix)
    if (first := _instead(images, labels)) is not None:
        images = replace(images, relative=Path(first, *images.relative.parts[1:]))
    return images, labels


def _fill_in(pattern: str, domain: Domain, split: Split) -> Place:
    *parts, name = pattern.split("/")
    inside = tuple(takewhile(_is_any, reversed(parts)))[::-1]
    images, labels = getattr(domain, f"{split}_images"), getattr(domain, f"{split}_labels")
    folder = "/".join(parts[: len(parts) - len(inside)]).format(split=split, images=images, labels=labels)
    return Place(domain.folder, expand_path(folder), inside, name.removeprefix("*"))


def _instead(images: Place, labels: Place) -> str | None:
    """The folder that is read in the place of the first one of `images`; None where that is there."""
    there = [name for name in images.instead if (images.root / name).is_dir()]
    if not there or (images.root / images.relative.parts[0]).is_dir():
        return None
    if len(there) > 1:
        raise UserError(
            f"{images.root}: holds {' and '.join(there)}; give each a root of its own, with a link to "
            f"{labels.relative.parts[0]}"
        )
    return there[0]


def image_folder(domain: Domain, split: Split) -> Path:
    """Where the images of a split have their place."""
    return places(domain, split)[0].folder


def has_label_folder(domain: Domain, split: Split) -> bool:
    """Whether the folder in which the labels of a split have their place is there."""
    return bool(places(domain, split)[1].folders())


def lacks_validation(domain: Domain) -> bool:
    """Whether there is a folder of training images and none of validation images, and the user has named none."""
    train, val = places(domain, "train")[0], places(domain, "val")[0]
    return bool(train.folders()) and not val.folders() and domain.val_images == Domain.val_images


def describe_other_files(domain: Domain, split: Split) -> str:
    """One line about the files in the image folder of a split that are not taken for images; "" without any."""
    images = places(domain, split)[0]
    return describe_left_out([path for path in images.files() if images.name_of(path) is None], images.pattern)
