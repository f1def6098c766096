"""A folder of somebody's images: looked over, and brought into the layout ``folder``. Imports no torch."""

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sfda.data.errors import UnreadableFile
from sfda.data.formats import MAX_PIXELS, read_header
from sfda.data.paths import IMAGE_TYPES, describe_left_out, files_below
from sfda.errors import UserError

Size = tuple[int, int]
T = TypeVar("T")
_SUFFIXES = re.compile(
    r"_(leftImg8bit|gtFine_labelIds|gtFine_labelTrainIds|labelIds|labelTrainIds|trainIds|labels?|mask|gt)$"
)
"""What names of images or of their labels end with, in published data sets and in annotation tools."""
OWN = ("adapt.json", "predict.json")
"""Files by which a folder is known that `sfda adapt` or `sfda predict` filled: its pictures are no photographs."""


@dataclass(frozen=True)
class Photographs:
    """The images below a folder.

    Attributes:
        folder: The folder.
        images: Those that can be used, as far as their headers tell.
        sizes: How many there are of each (height, width), as a viewer shows them.
        faults: Those that cannot be used, and why.
        left_out: One line about files that are no images; "" where there are none.
    """

    folder: Path
    images: tuple[Path, ...]
    sizes: Mapping[Size, int]
    faults: tuple[UnreadableFile, ...] = ()
    left_out: str = ""

    def size(self, most_pixels: int) -> Size:
        """(height, width) that all images are brought to: the commonest one, made smaller to at most `most_pixels`."""
        height, width = max(self.sizes, key=lambda size: self.sizes[size])
        factor = min(1.0, (most_pixels / (height * width)) ** 0.5)
        return max(1, round(height * factor)), max(1, round(width * factor))

    def stretched(self) -> int:
        """How many images have another aspect than the commonest size, by more than a tenth."""
        height, width = self.size(MAX_PIXELS)
        aspect = width / height
        return sum(count for (h, w), count in self.sizes.items() if not 0.9 < w / h / aspect < 1.1)


def look_over(folder: Path, option: str = "--images") -> Photographs:
    """Find all images below a folder and read their headers.

    Raises:
        UserError: no such folder, or no image in it that can be used.
    """
    if not folder.is_dir():
        what = "a file; give the folder it is in" if folder.is_file() else "no such folder"
        raise UserError(f"{option} {folder}: {what}")
    files, written = _without_own(sorted(files_below(folder)))
    found = [path for path in files if path.suffix.lower() in IMAGE_TYPES]
    left_out = describe_left_out([path for path in files if path.suffix.lower() not in IMAGE_TYPES])
    if written:
        left_out = "; ".join(filter(None, [f"left out, since sfda wrote it: {', '.join(map(str, written))}", left_out]))
    if not found:
        raise UserError(f"{option} {folder}: no image ({', '.join(IMAGE_TYPES)}) there{left_out and f'; {left_out}'}")
    looked_at = [(path, _size_or_fault(path)) for path in found]
    images = [path for path, size in looked_at if isinstance(size, tuple)]
    sizes = Counter(size for _, size in looked_at if isinstance(size, tuple))
    faults = [fault for _, fault in looked_at if isinstance(fault, UnreadableFile)]
    if not images:
        raise UserError(f"{option} {folder}: none of its {len(found)} images can be used, the first: {faults[0]}")
    return Photographs(folder, tuple(images), sizes, tuple(faults), left_out)


def _without_own(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files without those of folders that `sfda adapt` and `sfda predict` filled, and these folders."""
    written = sorted({path.parent for path in files if path.name in OWN})
    return [path for path in files if not any(folder in path.parents for folder in written)], written


def _size_or_fault(path: Path) -> Size | UnreadableFile:
    """(height, width) as a viewer shows it, or why the image cannot be used."""
    try:
        header = read_header(path, path.read_bytes())
    except OSError as error:
        return UnreadableFile(path, f"cannot be opened ({error.strerror})")
    except UnreadableFile as fault:
        return fault
    if header.height * header.width > MAX_PIXELS:
        return UnreadableFile(path, f"declares {header.height}x{header.width} pixels: cut it into smaller images")
    turned = header.orientation > 4
    return (header.width, header.height) if turned else (header.height, header.width)


def spread(items: Sequence[T], count: int) -> list[T]:
    """So many of a sequence, evenly spread over it; all where there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def labels_of(images: Sequence[Path], folder: Path, labels: Path) -> dict[Path, Path]:
    """The label file of each image that has one: of the same name, whatever they end with.

    Raises:
        UserError: no such folder of labels, or none of them belongs to an image, or two belong to one, or one to two.
    """
    if not labels.is_dir():
        raise UserError(f"--labels {labels}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(files_below(labels)):
        if path.suffix.lower() == ".png":
            name = _frame(path, labels)
            if name in found:
                raise UserError(f"--labels {labels}: {found[name]} and {path} are labels of one image; keep one")
            found[name] = path
    pairs = {image: found[name] for image in images if (name := _frame(image, folder)) in found}
    owner: dict[Path, Path] = {}
    for image, label in pairs.items():
        if owner.setdefault(label, image) != image:
            raise UserError(f"--labels {labels}: {owner[label]} and {image} would both have {label}: rename one image")
    if not pairs:
        example = f", such as {next(iter(found.values()))}," if found else ""
        raise UserError(
            f"--labels {labels}: none of its {len(found)} PNG files{example} is named like an image of {folder}, such "
            f"as {images[0]}"
        )
    return pairs


def _frame(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder)
    return (relative.parent / _SUFFIXES.sub("", relative.stem)).as_posix()


def link_images(files: Iterable[tuple[str, Path]], folder: Path) -> None:
    """Fill a folder with links by name to files that lie elsewhere; copies where the system makes no links."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files:
        link = folder / f"{name}{path.suffix.lower()}"
        if link.is_symlink() or link.exists():
            continue
        try:
            link.symlink_to(path.absolute())
        except (OSError, NotImplementedError):
            shutil.copyfile(path, link)


def flat_names(images: Sequence[Path], folder: Path) -> dict[Path, str]:
    """A name of its own for each image, without folders: ``day/0001.jpg`` → ``day__0001``.

    Images that differ in nothing but their type, or in their case, get numbers.
    """
    names: dict[Path, str] = {}
    seen: Counter[str] = Counter()
    for path in images:
        relative = path.relative_to(folder).with_suffix("")
        name = "__".join(relative.parts)
        seen[name.lower()] += 1
        count = seen[name.lower()]
        names[path] = name if count == 1 else f"{name}__{count}"
    return names
