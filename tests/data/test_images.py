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
from PIL import Image

from sfda.data.errors import UnreadableFile
from sfda.data.images import read_image, read_label_values
from tiny_files import SIZE


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_files_cut_off_anywhere(kind: str, share: float, photo: Image.Image, tmp_path: Path) -> None:
    # With a thumbnail, whose own end marker must not pass for the file's.
    data = encode(
        photo, kind, **({"exif": b"Exif\0\0" + encode(photo.resize((64, 32)), "JPEG")} if kind == "JPEG" else {})
    )
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert read_image(path).shape == (300, 600, 3)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableFile, match="cut off"):
        read_image(path)
    path.write_bytes(data + b"\0" * 40)  # what some cameras append
    assert read_image(path).shape == (300, 600, 3)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_never_surfaces_as_another_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    label = Image.fromarray(np.arange(24 * 48, dtype=np.uint16).reshape(SIZE).astype(np.uint8) % 34)
    label.putpalette(bytes(range(256)) * 3)
    content = bytearray(encode(label, "PNG"))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(bytes(content))
    for read in (read_image, read_label_values):
        with contextlib.suppress(UnreadableFile):  # both outcomes are right, no third one
            assert read(path).shape[:2] == SIZE


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


def test_orientation_is_applied(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(photo, "JPEG", quality=95, exif=exif))
    image = read_image(path)
    assert image.shape == (600, 300, 3)
    assert np.abs(image.astype(int) - np.rot90(np.asarray(photo), -1)).mean() < 3


def test_labels_that_are_no_label_maps(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(photo, "PNG"))
    with pytest.raises(UnreadableFile, match="has 3 channels; a label map has one"):
        read_label_values(path)
    path.write_bytes(encode(photo.convert("L"), "JPEG"))
    with pytest.raises(UnreadableFile, match="labels must be PNG"):
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
