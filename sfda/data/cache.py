"""Decoded copies of images and label maps, which are mapped into memory where decoding would take most of the time.

A copy lies in a hidden folder beside its file, so that whoever does not have the one, since its folder is closed or
gone, does not have the other. Its name is a hash of the file's name, size and time of change: a file that was changed
has no copy, and is decoded as ever. Imports no torch.
"""

import hashlib
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sfda.data.errors import UnreadableFile
from sfda.files import write_whole

FOLDER = ".sfda_cache"

What = Literal["image", "label", "label in red"]
"""How a file was decoded: `read_image`, or `read_label_values` without and with `red_channel`."""


def copy_path(path: Path, what: What) -> Path:
    """Where the copy of a file has its place.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    identity = f"{what} {path.name} {status.st_size} {status.st_mtime_ns}"
    return path.parent / FOLDER / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"


def read_copy(path: Path, what: What, max_pixels: int) -> npt.NDArray[Any] | None:
    """The copy of a file, mapped into memory and read-only; None where there is none, or one that is too large.

    Raises:
        UnreadableFile: the copy is damaged.
    """
    try:
        copy = copy_path(path, what)
        decoded = np.asarray(np.load(copy, mmap_mode="r"))
    except OSError:
        return None  # whoever decodes the file says what is wrong with it
    except ValueError as error:
        raise UnreadableFile(copy, f"damaged ({error}): delete it") from error
    return decoded if decoded.shape[0] * decoded.shape[1] <= max_pixels else None


def write_copy(path: Path, what: What, decoded: npt.NDArray[Any]) -> None:
    """Keep what a file was decoded to.

    Raises:
        WriteError: it cannot be written.
    """
    content = io.BytesIO()
    np.save(content, decoded)
    write_whole(copy_path(path, what), content.getbuffer(), shared=True)
