"""Single images and labels: every kind of file, whole and damaged."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sfda.data.errors import UnreadableFile
from sfda.data.formats import read_header
from sfda.data.images import read_image, read_label_values, read_orientation
from tiny_files import SIZE, chunk, png


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def photo(rng: np.random.Generator) -> Image.Image:
    coarse = Image.fromarray(rng.integers(0, 256, (6, 12, 3), dtype=np.uint8))
    return coarse.resize((600, 300), Image.Resampling.BICUBIC)


KINDS = {
    "PNG": {},
    "JPEG": {},
    "JPEG, progressive": {"progressive": True, "restart_marker_blocks": 1},
    "TIFF": {},
    "TIFF, big": {"big_tiff": True, "compression": "tiff_lzw"},
    "BMP": {},
    "WebP": {"lossless": True},
    "WebP, lossy": {"quality": 50},
}
"""Pillow's options of each kind of file."""


def encode_as(kind: str, image: Image.Image, **options) -> bytes:
    return encode(image, kind.split(",")[0].upper(), **KINDS[kind], **options)


def is_cut_off(data: bytes) -> bool:
    try:
        read_header(Path("a.png"), data)
    except UnreadableFile as error:
        return "cut off" in error.reason
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_at_any_byte(kind: str, photo: Image.Image, tmp_path: Path) -> None:
    thumbnail = {"exif": b"Exif\0\0" + encode(photo.resize((8, 4)), "JPEG")} if kind == "JPEG" else {}
    data = encode_as(kind, photo.resize((12, 6)), **thumbnail)
    path = tmp_path / "a.png"
    for end in range(12, len(data)):
        assert is_cut_off(data[:end]), end
    path.write_bytes(data[:-1])
    with pytest.raises(UnreadableFile, match="cut off before its end: copy it again"):
        read_image(path)
    path.write_bytes(data + b"\0" * 40)  # what some cameras append
    assert read_image(path).shape == (6, 12, 3)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), kind=st.sampled_from(["palette label", *KINDS]))
def test_damage_never_surfaces_as_another_error(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    label = Image.fromarray(np.arange(24 * 48, dtype=np.uint16).reshape(SIZE).astype(np.uint8) % 34)
    if kind == "palette label":
        label.putpalette(bytes(range(256)) * 3)
        content = bytearray(encode(label, "PNG"))
    else:
        content = bytearray(encode_as(kind, label.convert("RGB")))
    places = st.one_of(st.integers(2, 60), st.integers(2, len(content) - 1))  # headers more often
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(bytes(content))
    for read in (read_image, read_label_values):
        with contextlib.suppress(UnreadableFile):  # both outcomes are right, no third one
            height, width = read(path, max_pixels=2**20).shape[:2]
            assert (height, width) == SIZE or kind not in ("PNG", "palette label")


def test_every_kind_of_picture_becomes_rgb(photo: Image.Image, tmp_path: Path) -> None:
    rgb = np.asarray(photo)
    alpha = Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)]))
    grey = photo.convert("L")
    path = tmp_path / "a.PNG"
    for image, expected in (
        (photo, rgb),
        (alpha, rgb),
        (grey, np.repeat(np.asarray(grey)[..., None], 3, axis=-1)),
        (photo.quantize(16), np.asarray(photo.quantize(16).convert("RGB"))),
    ):
        path.write_bytes(encode(image, "PNG"))
        np.testing.assert_array_equal(read_image(path), expected)
    cv2.imwrite(str(tmp_path / "deep.png"), rgb[..., ::-1].astype(np.uint16) * 257)
    assert np.abs(read_image(tmp_path / "deep.png").astype(int) - rgb).max() <= 1
    path.write_bytes(encode(photo, "JPEG", quality=95))  # the content decides, not the name
    assert np.abs(read_image(path).astype(int) - rgb).mean() < 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read_by_its_content(kind: str, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_as(kind, photo))
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path) - expected).mean() < 1  # Pillow and OpenCV round JPEG's colours differently


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("L", "CMYK")),
        *(("TIFF", mode) for mode in ("1", "L", "P", "LA", "RGBA", "CMYK")),
        *(("BMP", mode) for mode in ("1", "L", "P", "RGBA")),
        *(("WEBP", mode) for mode in ("L", "RGBA")),
        *(("PNG", mode) for mode in ("1", "LA")),
    ],
)
def test_grey_alpha_and_cmyk(kind: str, mode: str, photo: Image.Image, tmp_path: Path) -> None:
    image = photo.convert(mode)
    path = tmp_path / "a.tif"
    path.write_bytes(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.abs(read_image(path) - np.asarray(image.convert("RGB")).astype(int)).mean() < 1.5


def test_deep_tiffs_and_those_with_several_pages(photo: Image.Image, tmp_path: Path) -> None:
    rgb, path = np.asarray(photo), tmp_path / "a.tif"
    cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(path), rgb)
    path.write_bytes(encode(photo, "TIFF", save_all=True, append_images=[photo.rotate(180)]))
    np.testing.assert_array_equal(read_image(path), rgb)
    for values in (rgb.astype(np.float32), rgb[..., 0].astype(np.int32), rgb[..., 0].astype(np.int16)):
        cv2.imwrite(str(path), values)
        with pytest.raises(UnreadableFile, match="a TIFF of float, signed or 32-bit values: save it with 8 or 16"):
            read_image(path)
    path.write_bytes(encode(photo, "GIF"))
    with pytest.raises(UnreadableFile, match="not a PNG, JPEG, TIFF, BMP or WebP file"):
        read_image(path)


# ---------------------------------------------------------------- JPEG as its standard allows it


def oddities(data: bytes) -> dict[str, bytes]:
    """A progressive JPEG, in ways that are legal and rare."""
    tables, scan = data.index(b"\xff\xdb"), data.rindex(b"\xff\xda")
    comment = b"\xff\xfe\0\x06\xff\xd9\xff\xd9"
    return {
        "a fill byte": data[:tables] + b"\xff" + data[tables:],
        "fill bytes after the start": data[:2] + b"\xff" * 5 + data[2:],
        "fill bytes between scans": data[:scan] + b"\xff" * 3 + data[scan:],
        "fill bytes before the end": data[:-2] + b"\xff" * 300 + data[-2:],
        "a marker without length": data[:tables] + b"\xff\x01" + data[tables:],
        "a restart marker in the header": data[:tables] + b"\xff\xd3" + data[tables:],
        "an end marker in a comment between scans": data[:scan] + comment + data[scan:],
        "a second image": data + data,
    }


@pytest.mark.parametrize("oddity", oddities(b"\xff\xd8\xff\xdb\xff\xda"))
def test_legal_oddities_of_a_jpeg_are_read(oddity: str, photo: Image.Image, tmp_path: Path) -> None:
    photo = photo.resize((24, 12))
    plain = encode_as("JPEG, progressive", photo)
    odd, path = oddities(plain)[oddity], tmp_path / "a.jpg"
    path.write_bytes(plain)
    expected = read_image(path)
    path.write_bytes(odd)
    np.testing.assert_array_equal(read_image(path), expected)
    for end in range(3, len(plain) if oddity == "a second image" else len(odd)):
        assert is_cut_off(odd[:end]), end


def test_the_first_image_of_an_mpo_file(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(photo, "JPEG", quality=95))
    expected = read_image(path)
    path.write_bytes(encode(photo, "MPO", quality=95, save_all=True, append_images=[photo.rotate(180)]))
    np.testing.assert_array_equal(read_image(path), expected)


# ---------------------------------------------------------------- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_and_told(kind: str, orientation: int, photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(photo.resize((60, 30)), kind, quality=95, exif=exif))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    image = read_image(path)
    assert image.shape == shown.shape == ((60, 30, 3) if orientation > 4 else (30, 60, 3))
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - shown).mean() < 1
    assert read_orientation(path) == orientation


def test_a_turned_tiff_of_16_bits(photo: Image.Image, tmp_path: Path) -> None:
    grey = np.asarray(photo.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.tif"
    path.write_bytes(encode(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF", exif=exif))
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rot90(grey, -1))
    assert read_orientation(path) == 6


@pytest.mark.parametrize(
    ("exif", "orientation"),
    [
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0", 8),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x08\0\0\0", 8),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0", 1),  # a number without meaning
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03", 1),
        (b"", 1),
    ],
)
def test_exif_of_both_byte_orders_and_damaged_exif(exif: bytes, orientation: int, photo, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(photo, "JPEG", exif=b"Exif\0\0" + exif))
    assert read_orientation(path) == orientation
    assert read_image(path).shape == ((600, 300, 3) if orientation > 4 else (300, 600, 3))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_declares_too_many_pixels_is_not_decoded(
    kind: str, photo: Image.Image, tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_as(kind, photo))
    assert read_image(path, max_pixels=300 * 600).shape == (300, 600, 3)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("memory was asked for"))
    with pytest.raises(UnreadableFile, match=r"declares 300x600 pixels .* more than `max_pixels` 179999"):
        read_image(path, max_pixels=300 * 600 - 1)


@pytest.mark.parametrize("read", [read_image, read_label_values])
@pytest.mark.parametrize("colour_type", [0, 3])
def test_a_png_of_30000x30000_pixels_in_a_hundred_bytes(read, colour_type: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(30000, 30000, colour_type, b""))
    with pytest.raises(UnreadableFile, match="declares 30000x30000 pixels"):
        read(path)


def test_our_limit_stands_in_the_place_of_pillows(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 6, 3, bytes(4 * 7)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    assert read_label_values(path).tolist() == [[0] * 6] * 4


@pytest.mark.parametrize("read", [read_image, read_label_values])
@pytest.mark.parametrize("content", ["", "IEND", "IHDR", "IDAT IEND"])
def test_a_png_without_a_header(read, content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind.encode(), b"") for kind in content.split()))
    with pytest.raises(UnreadableFile, match=r"cut off|damaged"):
        read(path)


@pytest.mark.parametrize("colour_type", [0, 3])
def test_a_label_with_a_wrong_checksum(colour_type: int, tmp_path: Path) -> None:
    content = bytearray(png(4, 6, colour_type, bytes(4 * 7)))
    content[content.index(b"IEND") - 5] ^= 1  # the last byte of the checksum of IDAT
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="damaged, the checksum of a chunk IDAT is wrong"):
        read_label_values(path)


def test_labels_that_are_no_label_maps(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(photo, "PNG"))
    with pytest.raises(UnreadableFile, match="has 3 channels; a label map has one"):
        read_label_values(path)
    path.write_bytes(encode(photo.convert("L"), "JPEG"))
    with pytest.raises(UnreadableFile, match="not a PNG; labels must be PNG"):
        read_label_values(path)
    path.write_bytes(encode(photo.convert("1"), "PNG"))
    with pytest.raises(UnreadableFile, match="a grey PNG of 1 bit"):
        read_label_values(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_indices_of_every_depth(bits: int, tmp_path: Path, rng) -> None:
    values = rng.integers(0, 2**bits, SIZE, dtype=np.uint8)
    label = Image.fromarray(values)
    label.putpalette(bytes(reversed(range(256))) * 3)
    path = tmp_path / "a.png"
    path.write_bytes(encode(label, "PNG", bits=bits, transparency=0))
    np.testing.assert_array_equal(read_label_values(path), values)


def test_16_bit_values_are_kept(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    np.testing.assert_array_equal(read_label_values(tmp_path / "a.png"), values)
