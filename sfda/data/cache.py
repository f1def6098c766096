"""Decoded copies of images and label maps, which are mapped into memory where decoding would take most of the time.

A copy lies in a hidden folder beside its file, so that whoever does not have the one, since its folder is closed or
gone, does not have the other. Its name is a hash of the file's name, size and time of change: a file that was changed
has no copy, and is decoded as ever. What a copy says of its shape is checked against its length; that its pixels are
still those that were written is not, since that would take as long as they are large. Imports no torch.
"""

import hashlib
import io
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0

from sfda.data.errors import UnreadableFile
from sfda.files import write_whole

FOLDER = ".sfda_cache"
DTYPES = (np.uint8, np.uint16)

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
        decoded = _map(copy)
    except OSError:
        return None  # whoever decodes the file says what is wrong with it
    except (ValueError, EOFError, TokenError) as error:  # of numpy, which reads the shape as Python
        raise UnreadableFile(copy, f"damaged ({error}): delete it") from error
    header, length = _header(decoded), copy.stat().st_size
    with copy.open("rb") as file:
        is_whole = file.read(len(header)) == header and length == len(header) + decoded.nbytes
    if decoded.dtype not in DTYPES or not is_whole:
        raise UnreadableFile(copy, "damaged (another shape than its length): delete it")
    return decoded if decoded.shape[0] * decoded.shape[1] <= max_pixels else None


def _map(copy: Path) -> npt.NDArray[Any]:
    return np.asarray(np.load(copy, mmap_mode="r"))


def _header(decoded: npt.NDArray[Any]) -> bytes:
    """What stands before the pixels of a copy."""
    content = io.BytesIO()
    write_array_header_1_0(content, header_data_from_array_1_0(decoded))
    return content.getvalue()


def write_copy(path: Path, what: What, decoded: npt.NDArray[Any]) -> None:
    """Keep what a file was decoded to.

    Raises:
        WriteError: it cannot be written.
    """
    content = io.BytesIO()
    np.save(content, decoded)
    write_whole(copy_path(path, what), content.getbuffer(), shared=True)
