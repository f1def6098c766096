"""What an image file declares, read from its bytes before any pixel is decoded.

Decoders allocate whatever a header declares, and OpenCV up to 4.10 fills the rest of a JPEG that was cut off with
whatever is in memory, without a word. Pillow reads headers too, but refuses many files that OpenCV decodes.
"""

import re
import struct
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfda.data.errors import UnreadableFile

PNG_START = b"\x89PNG\r\n\x1a\n"

MAX_PIXELS = 2**28
"""Pixels that an image may declare unless its domain says otherwise: 16384x16384, of which 1.6 GB are asked for."""

ORIENTATIONS = {
    2: "mirrored",
    3: "turned by 180°",
    4: "mirrored upside down",
    5: "mirrored along its diagonal",
    6: "turned by 90° clockwise",
    7: "mirrored along its other diagonal",
    8: "turned by 90° anticlockwise",
}
"""What an EXIF orientation (tag 0x0112 of EXIF 2.32) asks a viewer to do with the stored pixels; 1 is nothing."""


@dataclass(frozen=True)
class Header:
    """What a file declares of itself and of the pixels that it stores."""

    kind: str  # `PNG`, `JPEG`, `TIFF`, `BMP` or `WebP`, by content
    height: int
    width: int
    orientation: int = 1  # of EXIF: a key of `ORIENTATIONS`, or 1


def read_header(path: Path, data: bytes) -> Header:
    """The header of the image file `path`, of whose content `data` is all.

    Raises:
        UnreadableFile: the file is cut off, its header damaged, or its format not one that is read.
    """
    parse = next((parse for start, parse in _PARSERS.items() if re.match(start, data, re.DOTALL)), None)
    if parse is None:
        raise UnreadableFile(path, "cannot be decoded: not a PNG, JPEG, TIFF, BMP or WebP file")
    try:
        header = parse(data)
    except (EOFError, struct.error) as error:
        raise UnreadableFile(path, "the file is cut off before its end: copy it again") from error
    except ValueError as error:
        raise UnreadableFile(path, f"cannot be decoded: {error}") from error
    if not header.height * header.width:
        raise UnreadableFile(path, "cannot be decoded: damaged, it declares an image without pixels")
    return header


# PNG: specification, 5 and 11
def _png(data: bytes) -> Header:
    if not b"IHDR".startswith(data[12:16]):
        raise ValueError("damaged, its first chunk is no header")
    width, height, _, colour_type = struct.unpack_from(">IIBB", data, 16)
    # Of grey and palette, as labels are; RGB is left to the decoder, which checks it too.
    checked = (b"IHDR", b"PLTE", b"IDAT", b"IEND") if colour_type in (0, 3) else ()
    position, kind, orientation = 8, b"", 1
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if kind in checked and zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            raise ValueError(f"damaged, the checksum of a chunk {kind.decode()} is wrong: copy it again")
        if kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : end])
        position = end + 4
    return Header("PNG", height, width, orientation)


# JPEG: ITU-T T.81, annex B
_NO_MARKER = np.zeros(256, dtype=np.bool_)
_NO_MARKER[[0x00, *range(0xD0, 0xD8), 0xFF]] = True  # after 0xFF: a stuffed byte, restarts within a scan, fill bytes
_WITHOUT_LENGTH, _END = (0x01, 0xD8), 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> Header:
    # From marker to marker until the end marker: thumbnails have end markers of their own.
    codes = np.frombuffer(data, dtype=np.uint8)
    places = np.flatnonzero(codes[:-1] == 0xFF) + 1
    places = places[~_NO_MARKER[codes[places]]]
    position, height, width, orientation = 2, 0, 0, 1
    while (found := int(np.searchsorted(places, position))) < len(places):
        marker, position = codes[places[found]], int(places[found]) + 1
        if marker == _END:
            return Header("JPEG", height, width, orientation)
        if marker in _WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2):
            orientation = _exif_orientation(data[position + 8 : position + length])
        position += length
    raise EOFError


# TIFF: 6.0, sections 2, 8 and 19; BigTIFF. EXIF lies in the same directories.
def _tiff(data: bytes) -> Header:
    tags = _tags(data, {256, 257, 258, 273, 274, 279, 324, 325, 339})
    if not {256, 257} <= tags.keys():
        raise ValueError("damaged, its first page has no size")
    if max(tags.get(258, (1,))) > 16 or not {1, 4} >= set(tags.get(339, (1,))):
        raise ValueError("a TIFF of float, signed or 32-bit values: save it with 8 or 16 bits for each channel")
    for starts, lengths in ((273, 279), (324, 325)):  # of strips, of tiles
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
            if start + length > len(data):
                raise EOFError
    return Header("TIFF", tags[257][0], tags[256][0], _known(tags.get(274, (1,))[0]))


def _tags(data: bytes, wanted: Collection[int]) -> dict[int, tuple[int, ...]]:
    """The `wanted` whole numbers of the first directory."""
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(order + "H", data, 2) == (43,)
    word, size, entry = ("Q", 8, 20) if big else ("I", 4, 12)
    (directory,) = struct.unpack_from(order + word, data, size)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
    first = directory + (8 if big else 2)
    letters = {3: "H", 4: "I", 16: "Q"}  # of the whole numbers: type → `struct` format
    tags: dict[int, tuple[int, ...]] = {}
    for place in range(first, first + count * entry, entry):
        tag, kind, values = struct.unpack_from(f"{order}HH{word}", data, place)
        if tag in wanted and kind in letters and values:
            layout, start = f"{order}{values}{letters[kind]}", place + entry - size
            if struct.calcsize(layout) > size:  # then the place of the values stands there
                (start,) = struct.unpack_from(order + word, data, start)
            tags[tag] = struct.unpack_from(layout, data, start)
    return tags


def _exif_orientation(exif: bytes) -> int:
    try:
        return _known(_tags(exif.removeprefix(b"Exif\0\0"), {274}).get(274, (1,))[0])
    except struct.error:
        return 1  # a damaged remark does not spoil an image


def _known(orientation: int) -> int:
    return orientation if orientation in ORIENTATIONS else 1


# BMP: BITMAPFILEHEADER
def _bmp(data: bytes) -> Header:
    start, size = struct.unpack_from("<II", data, 10)
    if size == 12:  # the header of OS/2 1.x
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: from top to bottom
    if compression in (0, 3) and start + height * ((width * bits + 31) // 32 * 4) > len(data):
        raise EOFError
    return Header("BMP", height, max(0, width))


# WebP: RFC 9649
def _webp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 4)
    if max(30, size + 8) > len(data):
        raise EOFError
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[place : place + 3], "little") for place in (24, 27))
        return Header("WebP", height, width, _webp_orientation(data))
    if data[12:16] == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return Header("WebP", 1 + (packed >> 14 & 0x3FFF), 1 + (packed & 0x3FFF))
    width, height = struct.unpack_from("<HH", data, 26)
    return Header("WebP", height & 0x3FFF, width & 0x3FFF)


def _webp_orientation(data: bytes) -> int:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return _exif_orientation(data[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
    return 1


_PARSERS: dict[bytes, Callable[[bytes], Header]] = {
    PNG_START: _png,
    rb"\xff\xd8\xff": _jpeg,
    rb"II[*+]\0|MM\0[*+]": _tiff,
    rb"BM": _bmp,
    rb"RIFF....WEBP": _webp,
}
