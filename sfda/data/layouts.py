"""Where the images and labels of a data set lie: GTA5, SYNTHIA-RAND-CITYSCAPES, Cityscapes, and plain folders.

Only names are looked at here, no file is opened but the lists of names. Where labels are not asked for, nothing under
the label folder is listed or even looked for: a source-free run works with that folder gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn, get_args

from sfda.data.errors import DuplicateName, EmptyFolder, MissingLabels, MissingRoot
from sfda.data.formats import MAX_PIXELS
from sfda.data.paths import IMAGE_TYPES, describe_left_out, expand_path, files_below
from sfda.data.splits import Report, Split, names_in_split
from sfda.errors import UserError

LabelValues = Literal["label_ids", "train_ids"]

_TRAIN_IDS = "_gtFine_labelTrainIds"
# Cityscapes in fog and rain: folders that stand in the place of `leftImg8bit`, and what their files' names have in
# common. One frame is there several times, `<frame>_leftImg8bit_foggy_beta_0.02` being one of them.
_WEATHER_FOLDERS = ("leftImg8bit_foggy", "leftImg8bit_foggyDBF", "leftImg8bit_rain")
_WEATHER_NAME = re.compile("_leftImg8bit_(?:foggy|rain)_")


@dataclass(frozen=True)
class Domain:
    """One domain, source or target, as a user describes it.

    Attributes:
        layout: How the files lie: `gta5`, `synthia`, `cityscapes` as published, or `folder` for anything else. Foggy
            and Rainy Cityscapes are `cityscapes`: `leftImg8bit_foggy` or `leftImg8bit_rain` is read where there is no
            `leftImg8bit`; the versions of a frame are images of their own that share its label.
        root: Folder of the data set.
        classes: Class set of the label files, a name or a YAML file (`folder` only, and only where labels are read).
            The named sets have Cityscapes label ids (7 is road) in their files, unless `label_values` says otherwise.
        label_values: What the label files hold: the data set's `label_ids`, or `train_ids`, the order of `cityscapes19`
            (0 is road, 255 ignored). For `gta5`, `cityscapes` (which then reads `*_labelTrainIds.png` where there are
            any) and a `folder` with a named class set; the `ids` of a YAML file say it themselves.
        train_list: Text file of the names to train on, one a line (`gta5`, `synthia`). Default: `train.txt` in the
            root; without any list, a fixed tenth of the images, chosen by a hash of the name, is `val`.
        val_list: The same for validation; default `val.txt` in the root.
        train_images: Folder of the training images, relative to the root (`folder` only, like the next three).
        train_labels: Folder of the training labels.
        val_images: Folder of the validation images.
        val_labels: Folder of the validation labels.
        max_pixels: Pixels that an image or a label may declare, at most 2**30; a pair with more is named and left out.
    """

    layout: Literal["gta5", "synthia", "cityscapes", "folder"]
    root: str
    classes: str | None = None
    label_values: LabelValues = "label_ids"
    train_list: str | None = None
    val_list: str | None = None
    train_images: str = "train/images"
    train_labels: str = "train/labels"
    val_images: str = "val/images"
    val_labels: str = "val/labels"
    max_pixels: int = MAX_PIXELS

    @property
    def folder(self) -> Path:
        """The root, as a path that exists if the data set is there."""
        return expand_path(self.root)


@dataclass(frozen=True)
class Pair:
    """One image and where its label is (or ought to be); None where labels are not asked for."""

    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class _Place:
    """Folder of images or labels, relative to the root; names are the stems without `suffix`.

    With `by_city` (Cityscapes) files lie in folders of cities, and images may be versions in fog or rain. `fallback` is
    a suffix that is read where no file has `suffix`.
    """

    folder: Path
    suffix: str = ""
    fallback: str = ""
    by_city: bool = False
    types: tuple[str, ...] = IMAGE_TYPES

    @property
    def pattern(self) -> str:
        """What its files are named like, without the type."""
        return f"{'<city>/' if self.by_city else ''}*{self.suffix}"

    def files(self, root: Path) -> Iterator[Path]:
        """All files in the folder (in the cities and beside them, `by_city`), whatever they are."""
        return files_below(root / self.folder, levels=int(self.by_city))

    def name_of(self, path: Path, root: Path) -> str | None:
        """The name of the pair that one of `files` belongs to; None where its place, its type or its name is wrong."""
        if path.suffix.lower() not in self.types or (self.by_city and path.parent == root / self.folder):
            return None
        if path.stem.endswith(self.suffix):
            return path.stem.removesuffix(self.suffix)
        return path.stem if self.by_city and _WEATHER_NAME.search(path.stem) else None


def _places(domain: Domain, split: Split) -> tuple[_Place, _Place]:
    labels_only = (".png",)
    if domain.layout == "gta5":
        return _Place(Path("images")), _Place(Path("labels"), types=labels_only)
    if domain.layout == "synthia":
        return _Place(Path("RGB")), _Place(Path("GT/LABELS"), types=labels_only)
    if domain.layout == "cityscapes":
        suffix, fallback = "_gtFine_labelIds", ""
        if domain.label_values == "train_ids":
            suffix, fallback = _TRAIN_IDS, suffix
        return (
            _Place(Path(_cityscapes_images(domain), split), "_leftImg8bit", by_city=True),
            _Place(Path("gtFine", split), suffix, fallback, by_city=True, types=labels_only),
        )
    images, labels = {
        "train": (domain.train_images, domain.train_labels),
        "val": (domain.val_images, domain.val_labels),
    }[split]
    return _Place(expand_path(images)), _Place(expand_path(labels), types=labels_only)


def image_folder(domain: Domain, split: Split) -> Path:
    """Where the images of a split have their place."""
    return domain.folder / _places(domain, split)[0].folder


def lacks_validation(domain: Domain) -> bool:
    """Whether there is a folder of training images and none of validation images, and the user has named none."""
    train, val = image_folder(domain, "train"), image_folder(domain, "val")
    return train.is_dir() and not val.exists() and domain.val_images == Domain.val_images


def _cityscapes_images(domain: Domain) -> str:
    root = domain.folder
    weather = [name for name in _WEATHER_FOLDERS if (root / name).is_dir()]
    if not weather or (root / "leftImg8bit").is_dir():
        return "leftImg8bit"
    if len(weather) > 1:
        raise UserError(f"{root}: holds {' and '.join(weather)}; give each a root of its own, with a link to gtFine")
    return weather[0]


def label_folder(domain: Domain, split: Split) -> Path:
    """Where the labels of a split have their place."""
    return domain.folder / _places(domain, split)[1].folder


def describe_other_files(domain: Domain, split: Split) -> str:
    """One line about the files in the image folder of a split that are not taken for images; "" without any."""
    images = _places(domain, split)[0]
    if not image_folder(domain, split).is_dir():
        return ""
    others = [path for path in images.files(domain.folder) if images.name_of(path, domain.folder) is None]
    return describe_left_out(others, images.pattern)


def _raise(fault: UserError) -> NoReturn:
    raise fault


def read_pairs(domain: Domain, split: Split, with_labels: bool, report: Report = _raise) -> list[Pair]:
    """The images of a split in natural order of their names, with the paths of their labels if these are asked for.

    A label that is missing for some images only is left to the reader of that pair.

    Args:
        domain: The data set.
        split: Its part.
        with_labels: Whether labels are asked for.
        report: Told of faults that leave other pairs usable: no labels at all, names that stand twice, names in a list
            without an image. Default: they are raised like the rest.

    Raises:
        MissingRoot: the root or its image folder does not exist.
        EmptyFolder: no image in the folder or in the split.
        MissingLabels: labels are asked for and none is there.
        DuplicateName: two images, labels or lines of a list have one name.
        BadList: a list of names is missing, empty or names images that do not exist.
        UserError: an option that the layout does not have.
    """
    _check_options(domain)
    root = domain.folder
    images, labels = _places(domain, split)
    if split == "val" and domain.val_images != Domain.val_images and image_folder(domain, "train").is_dir():
        hint = "; without such a folder leave `val_images` out: adapting a target without labels needs none"
    else:
        hint = ""
    found = _find_images(root, images, labels, report, hint)
    if domain.layout in ("gta5", "synthia"):
        lists: dict[Split, str | None] = {"train": domain.train_list, "val": domain.val_list}
        found = {name: found[name] for name in names_in_split(root, split, lists, set(found), report)}
    if not found:
        raise EmptyFolder(f"{root}: the split `{split}` is empty; name its images in {root / f'{split}.txt'}")
    label_paths = _find_labels(root, images, labels, found, report) if with_labels else {}
    return [Pair(name, found[name], label_paths.get(name)) for name in sorted(found, key=_natural)]


def _check_options(domain: Domain) -> None:
    options_of = {
        "gta5": ("train_list", "val_list", "label_values"),
        "synthia": ("train_list", "val_list"),
        "cityscapes": ("label_values",),
        "folder": ("classes", "label_values", "train_images", "train_labels", "val_images", "val_labels"),
    }
    if domain.layout not in options_of:
        raise UserError(f"layout {domain.layout!r}: known layouts are {', '.join(options_of)}")
    if not 1 <= domain.max_pixels <= 2**30:  # OpenCV's own limit
        raise UserError(f"`max_pixels`: from 1 to 2**30 = {2**30}, not {domain.max_pixels}")
    if domain.label_values not in get_args(LabelValues):
        raise UserError(f"`label_values`: {' or '.join(get_args(LabelValues))}, not {domain.label_values!r}")
    defaults = Domain(domain.layout, domain.root)
    for option in sorted(set().union(*options_of.values()) - set(options_of[domain.layout])):
        if getattr(domain, option) != getattr(defaults, option):
            raise UserError(f"`{option}` means nothing for the layout `{domain.layout}`: leave it out")


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key under which 2 comes before 10, and 10 before a; the name itself decides between 1 and 01."""
    return [(not digits, int(digits or 0), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name)], name


def _files_by_name(root: Path, place: _Place, report: Report) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in place.files(root):
        name = place.name_of(path, root)
        if name is None:
            continue
        if name in found:
            report(DuplicateName(f"{found[name]} and {path} have one name, {name!r}: keep one of them"))
        found[name] = path
    return found


def _frame(name: str, images: _Place) -> str:
    """The name that the label of an image has."""
    return _WEATHER_NAME.split(name)[0] if images.by_city else name


def _find_images(root: Path, images: _Place, labels: _Place, report: Report, hint: str) -> dict[str, Path]:
    folder = root / images.folder
    if not root.is_dir():
        raise MissingRoot(
            f"{root}: no such folder; set `root` to where the data set lies. "
            "(`sfda data streets --out DIR` writes the embedded town, which needs no download.)"
        )
    if not folder.is_dir():
        raise MissingRoot(
            f"{folder}: no such folder, and images are expected there{hint or _likely_root(root, images, labels)}"
        )
    if found := _files_by_name(root, images, report):
        return found
    message = f"{folder}: no image {images.pattern} ({', '.join(images.types)}) in it"
    if not images.by_city and (deeper := next(_other_folders(folder, root / labels.folder), None)):
        message += f"; are they in {deeper}? Their place is {folder} itself"
    if images.by_city and (
        other := next((path for path in files_below(folder) if path.suffix.lower() in images.types), None)
    ):
        message += (
            f"; {other} is there: give such files names and folders as Cityscapes has them, or set `layout: folder`, "
            "which reads any names from one folder of images"
        )
    raise EmptyFolder(message)


def _likely_root(root: Path, images: _Place, labels: _Place) -> str:
    top = images.folder.parts[0]
    if root.name == top or (images.by_city and root.name in _WEATHER_FOLDERS):
        return f"; set `root` to its parent {root.parent}"
    for folder in _other_folders(root, root / labels.folder):
        if (folder / top).is_dir():
            return (
                f"; found {folder / top}: set `root` to {folder}, or move the files of all such folders to {root / top}"
            )
    return ""


def _other_folders(folder: Path, label_folder: Path) -> Iterator[Path]:
    """Folders in `folder`, without a glance at the one of the labels."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return (path for path in visible if not label_folder.is_relative_to(path) and path.is_dir())


def _find_labels(
    root: Path, images: _Place, labels: _Place, wanted: dict[str, Path], report: Report
) -> dict[str, Path]:
    folder = root / labels.folder
    found = _files_by_name(root, labels, report) if folder.is_dir() else {}
    if labels.fallback and folder.is_dir() and not found:
        found = _files_by_name(root, replace(labels, suffix=labels.fallback), report)
    expected = {
        name: folder / image.parent.relative_to(root / images.folder) / f"{_frame(name, images)}{labels.suffix}.png"
        for name, image in wanted.items()
    }
    there = {name: found[_frame(name, images)] for name in wanted if _frame(name, images) in found}
    if not there:
        example = next(iter(expected.values()))
        report(
            MissingLabels(
                f"{folder}: no label for any of the {len(wanted)} images; labels are PNG files with the images' names, "
                f"such as {example}{_train_ids_beside(folder, labels)}"
            )
        )
        return {}
    return expected | there


def _train_ids_beside(folder: Path, labels: _Place) -> str:
    count = len(list(folder.glob(f"*/*{_TRAIN_IDS}.png"))) if labels.by_city else 0
    return f"; {count} *{_TRAIN_IDS}.png are there: `label_values: train_ids` of the domain reads them" if count else ""
