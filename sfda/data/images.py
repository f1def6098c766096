"""Pictures and label maps from single files.

Every image and label of the project is opened here and with Python's own `open`, which audit hooks see (they do not
see `cv2.imread`): so a test can list each file that a run has read.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sfda.data.errors import UnreadableFile

Picture = npt.NDArray[np.uint8]
LabelValues = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"


def read_image(path: Path) -> Picture:
    """An image as (H, W, 3) uint8 RGB, 0-255.

    Grey becomes RGB, alpha is dropped, 16 bits become 8. An EXIF orientation is applied: the image is what a viewer or
    an annotation tool shows.

    Raises:
        UnreadableFile: missing, empty, cut off, or neither PNG nor JPEG.
    """
    bgr = _decode(path, _read_bytes(path), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_label_values(path: Path, *, red_channel: bool = False) -> LabelValues:
    """The values of a label PNG as they stand in the file: (H, W) uint8 or uint16.

    Of a palette PNG it is the index, never the colour behind it.

    Args:
        path: The PNG.
        red_channel: Whether a PNG of several channels is accepted, its first in RGB order being the label (SYNTHIA).

    Raises:
        UnreadableFile: missing, empty, cut off, no PNG, of too few bits or too many channels.
    """
    data = _read_bytes(path)
    if not data.startswith(_PNG_START):
        raise UnreadableFile(path, "not a PNG; labels must be PNG files, since JPEG changes values")
    bit_depth, colour_type = data[24], data[25]  # fixed places in the header chunk, PNG specification 11.2.2
    if colour_type == 3:
        return _palette_indices(path, data)  # OpenCV would replace the indices by their colours
    if bit_depth < 8:
        raise UnreadableFile(path, f"a grey PNG of {bit_depth} bit, whose values decoders rescale: save it with 8 bit")
    values = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if values.ndim == 2:
        return values
    if not red_channel:
        raise UnreadableFile(path, f"has {values.shape[2]} channels; a label map has one, of class ids, not of colours")
    return np.ascontiguousarray(values[..., 2])  # OpenCV orders BGR(A)


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableFile(path, f"cannot be opened ({error.strerror})") from error
    if not data:
        raise UnreadableFile(path, "the file is empty: copy it again")
    if _is_cut_off(data):
        raise UnreadableFile(path, "the file is cut off before its end: copy it again")
    return data


def _is_cut_off(data: bytes) -> bool:
    # OpenCV up to 4.10 fills the rest of a JPEG that was cut off with whatever is in memory, without a word.
    if data.startswith(_JPEG_START):
        # The end marker cannot occur within a scan, but a thumbnail in the header has one of its own.
        position = 2
        while (marker := data[position : position + 2])[:1] == b"\xff" and marker != _JPEG_SCAN:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        return data.find(_JPEG_END, position) < 0
    return data.startswith(_PNG_START) and data.rfind(_PNG_END) < 0


def _decode(path: Path, data: bytes, flags: int) -> npt.NDArray[np.uint8]:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise UnreadableFile(path, "cannot be decoded: damaged, or not an image of the kind its name says")
    return np.asarray(decoded)


def _palette_indices(path: Path, data: bytes) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFile(path, f"cannot be decoded: damaged ({error})") from error
