"""The images of a split, each with its label: found, or said why not.

Only names are looked at here, no file is opened but the lists of names. Where labels are not asked for, nothing under
the label folder is listed or even looked for: a source-free run works with that folder gone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, get_args

from sfda.data.errors import DuplicateName, EmptyFolder, MissingLabels, MissingRoot
from sfda.data.layouts import OPTIONS, Domain, LabelValues, layout_of
from sfda.data.paths import files_below
from sfda.data.places import Place, places
from sfda.data.splits import Report, Split, names_in_split
from sfda.errors import UserError


@dataclass(frozen=True)
class Pair:
    """One image and where its label is (or ought to be); None where labels are not asked for."""

    name: str
    image: Path
    label: Path | None


def _raise(fault: UserError) -> NoReturn:
    raise fault


def read_pairs(domain: Domain, split: Split, with_labels: bool, report: Report = _raise) -> list[Pair]:
    """The images of a split in natural order of their names, with the paths of their labels if these are asked for.

    A label that is missing for some images only is left to the reader of that pair. `report` is told of faults that
    leave other pairs usable: no labels at all, names that stand twice, names in a list without an image. By default
    they are raised like the rest.

    Raises:
        MissingRoot: the root or its image folder does not exist.
        EmptyFolder: no image in the folder or in the split.
        MissingLabels: labels are asked for and none is there.
        DuplicateName: two images, labels or lines of a list have one name.
        BadList: a list of names is missing, empty or names images that do not exist.
        UserError: an option that the layout does not have.
    """
    _check_options(domain)
    images, labels = places(domain, split)
    hint = ""
    if split == "val" and domain.val_images != Domain.val_images and places(domain, "train")[0].folders():
        hint = "; without such a folder leave `val_images` out: adapting a target without labels needs none"
    found = _find_images(images, labels, report, hint)
    root = domain.folder
    if "train_list" in layout_of(domain).options:
        lists: dict[Split, str | None] = {"train": domain.train_list, "val": domain.val_list}
        found = {name: found[name] for name in names_in_split(root, split, lists, set(found), report)}
    if not found:
        raise EmptyFolder(f"{root}: the split `{split}` is empty; name its images in {root / f'{split}.txt'}")
    label_paths = _find_labels(images, labels, found, report) if with_labels else {}
    return [Pair(name, found[name], label_paths.get(name)) for name in sorted(found, key=_natural)]


def _check_options(domain: Domain) -> None:
    layout = layout_of(domain)
    if not 1 <= domain.max_pixels <= 2**30:  # OpenCV's own limit
        raise UserError(f"`max_pixels`: from 1 to 2**30 = {2**30}, not {domain.max_pixels}")
    if domain.label_values not in get_args(LabelValues):
        raise UserError(f"`label_values`: {' or '.join(get_args(LabelValues))}, not {domain.label_values!r}")
    defaults = Domain(domain.layout, domain.root)
    for option in sorted(set(OPTIONS) - set(layout.options)):
        if getattr(domain, option) != getattr(defaults, option):
            raise UserError(f"`{option}` means nothing for the layout `{domain.layout}`: leave it out")


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key under which 2 comes before 10, and 10 before a; the name itself decides between 1 and 01."""
    return [(not digits, int(digits or 0), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name)], name


def _files_by_name(place: Place, report: Report) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in place.files():
        if (name := place.name_of(path)) is None:
            continue
        if name in found:
            report(DuplicateName(f"{found[name]} and {path} have one name, {name!r}: keep one of them"))
        found[name] = path
    return found


def _find_images(images: Place, labels: Place, report: Report, hint: str) -> dict[str, Path]:
    if not images.root.is_dir():
        raise MissingRoot(
            f"{images.root}: no such folder; set `root` to where the data set lies. "
            "(`sfda data streets --out DIR` writes the embedded town, which needs no download.)"
        )
    if not images.folders():
        raise MissingRoot(
            f"{images.folder}: no such folder, and images are expected there{hint or _likely_root(images, labels)}"
        )
    if found := _files_by_name(images, report):
        return found
    raise EmptyFolder(_no_image(images, labels))


def _no_image(images: Place, labels: Place) -> str:
    message = f"{images.folder}: no image {images.pattern} ({', '.join(images.types)}) in it"
    if not images.inside:
        deeper = next((path for folder in images.folders() for path in _other_folders(folder, labels.folder)), None)
        return f"{message}; are they in {deeper}? Their place is {images.folder} itself" if deeper else message
    below = (path for folder in images.folders() for path in files_below(folder))
    other = next((path for path in below if path.suffix.lower() in images.types), None)
    if other is None:
        return message
    return (
        f"{message}; {other} is there: give such files the names and folders of the published data set, or set "
        "`layout: folder`, which reads any names from one folder of images"
    )


def _likely_root(images: Place, labels: Place) -> str:
    root, top = images.root, images.relative.parts[0]
    if root.name in (top, *images.instead):
        return f"; set `root` to its parent {root.parent}"
    for folder in _other_folders(root, labels.folder):
        if (folder / top).is_dir():
            return f"; found {folder / top}: set `root` to {folder}, or move the files of such folders to {root / top}"
    return ""


def _other_folders(folder: Path, label_folder: Path) -> Iterator[Path]:
    """Folders in `folder`, without a glance at the one of the labels."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return (path for path in visible if not label_folder.is_relative_to(path) and path.is_dir())


def _find_labels(images: Place, labels: Place, wanted: dict[str, Path], report: Report) -> dict[str, Path]:
    found = _files_by_name(labels, report)
    if labels.fallback and not found:
        found = _files_by_name(replace(labels, suffix=labels.fallback), report)
    frames = {name: images.frame(name) for name in wanted}
    endings = {name: f"{frame}{labels.suffix}.png" for name, frame in frames.items()}
    expected = {name: labels.beside(image, images) / endings[name] for name, image in wanted.items()}
    there = {name: found[frame] for name, frame in frames.items() if frame in found}
    if not there:
        fault = f"{labels.folder}: no label for any of the {len(wanted)} images; labels are PNG files with their names"
        report(MissingLabels(f"{fault}, such as {next(iter(expected.values()))}{_train_ids_beside(labels)}"))
        return {}
    return expected | there


def _train_ids_beside(labels: Place) -> str:
    ending = f"{labels.train_ids}.png"
    count = sum(path.name.endswith(ending) for path in labels.files()) if labels.train_ids else 0
    return f"; {count} *{ending} are there: `label_values: train_ids` of the domain reads them" if count else ""
