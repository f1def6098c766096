"""Paths as a user writes them, and the files of a folder: one way for all who look for images. Imports no torch."""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfda.errors import UserError

IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Endings, in any case, of the files that are taken for images: those of the formats of `read_image`."""


def expand_path(path: str) -> Path:
    """A path that a user wrote, with ``~`` or ``~name`` replaced by the home folder that it stands for.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home folder; write the whole path") from error


def files_below(folder: Path, levels: int | None = None, without: Path | None = None) -> Iterator[Path]:
    """Files, not the hidden ones, in a folder and in the folders below it.

    Links are followed, but not back to a folder that they stand in; a folder that is reached by several paths is looked
    into once, the folder `without` never, and others down to so many `levels` below the first one (None: all).
    """
    seen = set() if without is None else {without.resolve()}
    waiting = deque([(folder, 0)])
    while waiting:
        here, depth = waiting.popleft()
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:  # which tells files from folders without a look at each
            found = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
        for name, is_folder in found:
            if not is_folder:
                yield here / name
            elif (levels is None or depth < levels) and (here / name).resolve() not in (real, *real.parents):
                waiting.append((here / name, depth + 1))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def describe_left_out(files: Sequence[Path], pattern: str = "*") -> str:
    """One line about `files` of an image folder that are not read, since those that are have names like `pattern`."""
    if not files:
        return ""
    kinds = sorted(Counter(path.suffix.lower() or "no ending" for path in files).items())
    counts = ", ".join(f"{kind}: {count}" for kind, count in kinds)
    named = "" if pattern == "*" else f" named {pattern}"
    return (
        f"{len(files)} file{'s are' if len(files) > 1 else ' is'} left out ({counts}), for example {files[0]}; "
        f"images are {', '.join(IMAGE_TYPES)}{named}"
    )
