"""Pictures and label maps from single files.

Every image and label of the project is opened here and with Python's own `open`, which audit hooks see (they do not
see `cv2.imread`): so a test can list each file that a run has read.
"""

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngImageFile

from sfda.data.errors import UnreadableFile
from sfda.data.formats import MAX_PIXELS, PNG_START, Header, read_header

Picture = npt.NDArray[np.uint8]
LabelValues = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# EXIF orientation → axis of `cv2.flip`, after a transposition from 5 up.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """An image as (H, W, 3) uint8 RGB, 0-255: PNG, JPEG, TIFF, BMP or WebP by content, whatever its name.

    Grey and CMYK become RGB, alpha is dropped, 16 bits become 8; of several pages or frames the first counts. An EXIF
    orientation is applied: the image is what a viewer or an annotation tool shows. One that declares more than
    `max_pixels` is refused before memory for them is asked for.

    Raises:
        UnreadableFile: missing, empty, cut off, too large, a TIFF of float values, or of another format.
    """
    data = _read(path)
    header = _limited_header(path, data, max_pixels)
    bgr = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if header.kind != "TIFF":  # libtiff turns in any case; whether OpenCV does differs from version to version
        bgr = _turned(bgr, header.orientation)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_orientation(path: Path) -> int:
    """The EXIF orientation that `read_image` applies, 1 to 8; see `sfda.data.formats.ORIENTATIONS`.

    Raises:
        UnreadableFile: as `read_image`, as far as the header tells.
    """
    return read_header(path, _read(path)).orientation


def read_label_values(path: Path, *, red_channel: bool = False, max_pixels: int = MAX_PIXELS) -> LabelValues:
    """The values of a label PNG as they stand in the file: (H, W) uint8 or uint16.

    Of a palette PNG it is the index, never the colour behind it. With `red_channel` a PNG of several channels is
    accepted, of which the first in RGB order is the label (SYNTHIA).

    Raises:
        UnreadableFile: missing, empty, cut off, too large, no PNG, of too few bits or too many channels.
    """
    data = _read(path)
    if not data.startswith(PNG_START):
        raise UnreadableFile(path, "not a PNG; labels must be PNG files, since JPEG changes values")
    _limited_header(path, data, max_pixels)
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


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableFile(path, f"cannot be opened ({error.strerror})") from error
    if not data:
        raise UnreadableFile(path, "the file is empty: copy it again")
    return data


def _limited_header(path: Path, data: bytes, max_pixels: int) -> Header:
    header = read_header(path, data)
    if header.height * header.width > max_pixels:
        raise UnreadableFile(
            path,
            f"declares {header.height}x{header.width} pixels (height x width), more than `max_pixels` {max_pixels}: "
            "cut it into smaller images, or raise `max_pixels` of its domain",
        )
    return header


def _decode(path: Path, data: bytes, flags: int) -> npt.NDArray[np.uint8]:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise UnreadableFile(path, "cannot be decoded: damaged, or of a variety that OpenCV does not read")
    return np.asarray(decoded)


def _turned(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    if orientation > 4:
        image = np.asarray(cv2.transpose(image))
    return np.asarray(cv2.flip(image, _FLIPS[orientation])) if orientation in _FLIPS else image


def _palette_indices(path: Path, data: bytes) -> npt.NDArray[np.uint8]:
    try:
        with PngImageFile(io.BytesIO(data)) as image:  # `Image.open` has a limit of its own
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFile(path, f"cannot be decoded: damaged ({error})") from error
