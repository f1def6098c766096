"""A folder of somebody's images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sfda.data.photographs import Photographs, flat_names, labels_of, link_images, look_over, spread
from sfda.errors import UserError


def image(path: Path, height: int = 6, width: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), dtype=np.uint8))
    return path


def test_images_at_any_depth_are_found_and_faults_named(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "day/b.jpg", 12, 16)
    image(tmp_path / "day/c.jpg", 12, 16)
    (tmp_path / "day/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "notes.txt").write_text("")
    found = look_over(tmp_path)
    assert [path.name for path in found.images] == ["a.png", "b.jpg", "c.jpg"]
    assert found.sizes == {(6, 8): 1, (12, 16): 2}
    assert [fault.path for fault in found.faults] == [tmp_path / "day/broken.png"]
    assert "notes.txt" in found.left_out
    assert found.size(1000) == (12, 16)
    assert found.size(48) == (6, 8)
    assert found.stretched() == 0


def test_an_image_counts_as_a_viewer_shows_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(tmp_path / "turned.jpg", exif=exif)
    assert look_over(tmp_path).sizes == {(16, 12): 1}
    mixed = Photographs(tmp_path, (), {(12, 16): 5, (16, 12): 2, (24, 32): 1})
    assert mixed.stretched() == 2


def test_a_folder_without_images_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"--images .*absent: no such folder"):
        look_over(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no image \(.*\) there; 1 file is left out"):
        look_over(tmp_path)
    with pytest.raises(UserError, match="a file; give the folder it is in"):
        look_over(tmp_path / "notes.txt")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of its 1 images can be used, the first: .*empty\.png"):
        look_over(tmp_path)


def test_labels_are_found_by_name_whatever_it_ends_with(tmp_path):
    images = [image(tmp_path / f"i/{name}") for name in ("a.jpg", "x/b_leftImg8bit.png", "c.png")]
    labels = [image(tmp_path / f"l/{name}") for name in ("a.png", "x/b_gtFine_labelIds.png", "other.png")]
    assert labels_of(images, tmp_path / "i", tmp_path / "l") == dict(zip(images, labels[:2], strict=False))
    image(tmp_path / "l/a_mask.png")
    with pytest.raises(UserError, match="are labels of one image"):
        labels_of(images, tmp_path / "i", tmp_path / "l")
    with pytest.raises(UserError, match="none of its 1 PNG files"):
        labels_of(images, tmp_path / "i", image(tmp_path / "m/z.png").parent)
    with pytest.raises(UserError, match=r"--labels .*: no such folder"):
        labels_of(images, tmp_path / "i", tmp_path / "none")


def test_links_have_names_of_their_own(tmp_path):
    images = [image(tmp_path / f"i/{name}") for name in ("a.jpg", "a.png", "x/a.png", "A.png")]
    names = flat_names(images, tmp_path / "i")
    assert len({name.lower() for name in names.values()}) == 4
    link_images(((names[path], path) for path in images), tmp_path / "links")
    link_images(((names[path], path) for path in images), tmp_path / "links")  # again: nothing happens
    assert {path.resolve() for path in (tmp_path / "links").iterdir()} == {path.resolve() for path in images}


def test_spread_takes_first_and_is_even():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread("abc", 5) == ["a", "b", "c"]


def test_what_sfda_wrote_is_no_photograph(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "predictions/deep/a_overlay.png")
    (tmp_path / "predictions/predict.json").write_text("{}")
    found = look_over(tmp_path)
    assert [path.name for path in found.images] == ["a.png"]
    assert found.left_out == f"left out, since sfda wrote it: {tmp_path / 'predictions'}"


def test_one_label_is_not_that_of_two_images(tmp_path):
    images = [image(tmp_path / "images/a.png"), image(tmp_path / "images/a.jpg")]
    image(tmp_path / "labels/a.png")
    with pytest.raises(UserError, match=r"a\.png and .*a\.jpg would both have .*labels/a\.png: rename one"):
        labels_of(images, tmp_path / "images", tmp_path / "labels")
