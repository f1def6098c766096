"""Files as they come back from a bad disk, a broken download, or the wrong program; seeded."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tiny_files import chunk

Damage = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, draw: random.Random) -> bytes:
    return _flipped(data, [draw.randrange(8 * len(data))])


def _flip_in_the_header(data: bytes, draw: random.Random) -> bytes:
    return _flipped(data, [draw.randrange(8 * min(len(data), 64))])


def _flip_many(data: bytes, draw: random.Random) -> bytes:
    return _flipped(data, [draw.randrange(8 * len(data)) for _ in range(draw.randint(2, 40))])


def _flipped(data: bytes, bits: list[int]) -> bytes:
    damaged = bytearray(data)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _zero(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:start] + bytes(end - start) + data[end:]


def _overwrite(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:start] + draw.randbytes(end - start) + data[end:]


def _remove(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:start] + data[end:]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    start, end = _range(data, draw)
    return data[:end] + data[start:]


def _range(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(data))
    return start, min(len(data), start + draw.randint(1, 200))


DAMAGES: dict[str, Damage] = {
    "a flipped bit": _flip,
    "a flipped bit in the header": _flip_in_the_header,
    "several flipped bits": _flip_many,
    "cut off": _cut,
    "zeros": _zero,
    "overwritten": _overwrite,
    "bytes missing": _remove,
    "bytes twice": _repeat,
}
"""What happens to the bytes of a file."""

TOKENS = [
    *(b"[", b"]", b"{", b"}", b":", b",", b"-", b"?", b"&a ", b"*a", b"!!binary ", b"!!python/none ", b"|", b"'", b'"'),
    *(b"0", b"1", b"10", b"255", b"256", b"65536", b"-1", b"1e9", b"0x1f", b"1:30", b"2026-13-01", b"~", b"true"),
    *(b"[[1]]", b"{a: 1}", b"<<: ", b"\n", b"\t", b"\0", b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf"),
]
"""What a slip of an editor leaves in a text."""


def damaged(data: bytes, draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """So many mutants of a file, each another content, and what happened to them; the kinds take turns."""
    kinds = list(DAMAGES)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        while (content := DAMAGES[kind](data, draw)) == data:
            pass
        yield kind, content


def tokens_changed(text: bytes, draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """So many mutants of a text into which another word or sign has got, in the place of up to five bytes."""
    for _ in range(count):
        start, token = draw.randrange(len(text)), draw.choice(TOKENS)
        yield f"{token!r}", text[:start] + token + text[start + draw.choice([0, 0, 1, 2, 5]) :]


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and contents of the chunks of a PNG."""
    found, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        found.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def from_chunks(parts: list[tuple[bytes, bytes]]) -> bytes:
    """The PNG of these chunks, with right checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def with_right_checksums(data: bytes, draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Mutants of a PNG whose checksums hold: what a broken program writes, and no reader need notice."""
    for _ in range(count):
        parts = chunks(data)
        place = draw.randrange(len(parts))
        kind, content = parts[place]
        change = draw.choice(["content", "kind", "missing", "twice", "cut off"])
        if change == "content" and content:
            parts[place] = (kind, draw.choice([_flip, _overwrite])(content, draw))
        elif change == "kind":
            parts[place] = (_flip(kind, draw), content)
        elif change == "cut off":
            parts[place] = (kind, content[: draw.randrange(len(content) + 1)])
        else:
            parts[place : place + 1] = [parts[place]] * (2 if change == "twice" else 0)
        yield f"{change} of {kind.decode()}", from_chunks(parts)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def other_files(values: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """What else stands under the name of a label map (H, W) uint8: other modes, sizes, formats, and no image at all."""
    label = Image.fromarray(values)
    palette = label.copy()
    palette.putpalette(bytes(reversed(range(256))) * 3)
    for mode in ("L", "LA", "RGB", "RGBA", "1"):
        yield f"mode {mode}", encode(label.convert(mode), "PNG")
    yield "mode P", encode(palette, "PNG")
    yield "mode I;16", encode(Image.fromarray(values.astype(np.uint16)), "PNG")
    yield "mode F", encode(Image.fromarray(values.astype(np.float32)), "TIFF")
    for kind in ("JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        yield f"a {kind}", encode(label, kind)
    yield "a CMYK JPEG", encode(label.convert("CMYK"), "JPEG")
    colours = np.random.default_rng(0).integers(30, 256, (256, 3), dtype=np.uint8)
    outside = values.copy()
    outside[-1, -1] = 250
    for name, array in (
        ("a map of colours", colours[values]),
        ("turned", values.T),
        ("a row less", values[1:]),
        ("twice as large", values.repeat(2, 0).repeat(2, 1)),
        ("a value outside of the classes", outside),
    ):
        yield name, encode(Image.fromarray(np.ascontiguousarray(array)), "PNG")
    yield "empty", b""
    yield "a web page", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
    yield "zeros alone", bytes(4096)
