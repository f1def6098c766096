import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfda.errors import UserError
from sfda.town import render, write_streets

DOMAINS = ("gta5", "synthia", "cityscapes")
COUNTS = {domain: {"train": 3, "val": 2} for domain in DOMAINS} | {"drift": {"val": 6}}
SIZE = {"height": 48, "width": 96}
# Written out a second time, from the data sets' own documentation: train id -> id in a label file.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SYNTHIA_IDS = {
    0: 3,
    1: 4,
    2: 2,
    3: 21,
    4: 5,
    5: 7,
    6: 15,
    7: 9,
    8: 6,
    10: 1,
    11: 10,
    12: 17,
    13: 8,
    15: 19,
    17: 12,
    18: 11,
}
PINNED = {
    ("gta5", 64): "e0803898a22d80db",
    ("gta5", 256): "7158c27748c55933",
    ("synthia", 64): "9665877dd0b45856",
    ("synthia", 256): "0e789e03cd366195",
    ("cityscapes", 64): "923b1180ca435ea6",
    ("cityscapes", 256): "5b920291ebad23d2",
}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _digests(domain: str) -> tuple[str, str]:
    image, labels = render(domain, "val", 3, 64, 128)
    return digest(image), digest(labels)


@pytest.mark.parametrize(("domain", "height"), PINNED)
def test_label_maps_are_what_they_always_were(domain: str, height: int):
    labels = render(domain, "train", 7, height, 2 * height)[1]
    assert digest(labels) == PINNED[domain, height]


MEANS = {
    "gta5": (117.9, 117.9, 100.8),
    "synthia": (106.7, 107.1, 113.9),
    "cityscapes": (103.1, 107.6, 100.6),
}


@pytest.mark.parametrize("domain", MEANS)
def test_images_keep_their_palette(domain: str):
    images = [render(domain, "train", index, 64, 128)[0] for index in range(12)]
    np.testing.assert_allclose(np.mean(images, axis=(0, 1, 2)), MEANS[domain], atol=1.0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_colours_belong_to_their_labels(domain: str):
    scenes = [render(domain, "train", index, 64, 128) for index in range(12)]
    images, labels = (np.stack(arrays).astype(float) for arrays in zip(*scenes, strict=True))
    means = {train_id: images[labels == train_id].mean(axis=0) for train_id in (0, 8, 10)}
    assert means[10].mean() > means[0].mean() + 30  # sky over road
    assert means[8][1] > means[8][[0, 2]].max()  # leaves are green
    assert means[10][2] > means[8][2] + 60  # and the sky is not


@pytest.mark.parametrize("domain", DOMAINS)
def test_render_is_a_pure_function(domain: str):
    first, again = render(domain, "val", 5, **SIZE), render(domain, "val", 5, **SIZE)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].shape == (48, 96, 3)
    assert first[1].shape == (48, 96)
    assert first[0].dtype == first[1].dtype == np.uint8


@pytest.mark.medium
def test_another_process_renders_the_same():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert list(pool.map(_digests, DOMAINS)) == [_digests(domain) for domain in DOMAINS]


def test_every_scene_is_another():
    scenes = [
        digest(part)
        for domain in DOMAINS
        for split in ("train", "val")
        for index in range(6)
        for part in render(domain, split, index, **SIZE)
    ]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.medium
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_is_frequent_enough_to_be_learnt(domain: str):
    images_with = np.zeros(256)
    for index in range(150):
        images_with += np.bincount(render(domain, "train", index, 64, 128)[1].ravel(), minlength=256) > 4
    absent = {9, 14, 16} if domain == "synthia" else set()
    assert {train_id for train_id in range(19) if images_with[train_id] == 0} == absent
    assert all(images_with[train_id] >= 0.05 * 150 for train_id in set(range(19)) - absent)
    assert images_with[19:255].sum() == 0
    assert (images_with[255] > 0) == (domain != "synthia")


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("weather", ["dusk", "fog"])
def test_weather_changes_the_image_alone(domain: str, weather: str):
    day, day_labels = render(domain, "val", 2, **SIZE)
    other, labels = render(domain, "val", 2, weather=weather, **SIZE)
    np.testing.assert_array_equal(labels, day_labels)
    assert np.abs(other.astype(int) - day).mean() > 5
    if weather == "dusk":
        assert other.mean() < 0.8 * day.mean()
    else:
        assert other.std() < day.std()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("index", range(4))
def test_a_scene_is_the_same_at_every_size(domain: str, index: int):
    small_image, small = render(domain, "train", index, 96, 192)
    large_image, large = render(domain, "train", index, 288, 576)
    assert (large[1::3, 1::3] == small).mean() > 0.88
    shrunk = cv2.resize(large_image, (192, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(cv2.blur(shrunk, (9, 9)).astype(int) - cv2.blur(small_image, (9, 9))).mean() < 8


@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(32, 150),
    width=st.integers(64, 300),
    index=st.integers(0, 10_000),
    domain=st.sampled_from(DOMAINS),
)
def test_any_size_and_index(height: int, width: int, index: int, domain: str):
    image, labels = render(domain, "train", index, height, width)
    assert image.shape == (height, width, 3)
    assert labels.shape == (height, width)
    assert set(np.unique(labels)) <= {*range(19), 255}


@pytest.mark.parametrize("wrong", [{"domain": "kitti"}, {"preset": "streets-v0"}, {"weather": "snow"}])
def test_unknown_names_are_named(wrong: dict[str, str]):
    with pytest.raises(UserError, match=next(iter(wrong.values()))):
        render(**{"domain": "gta5", "split": "val", "index": 0, **wrong})


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "town"
    write_streets(root, counts=COUNTS, **SIZE)
    return root


def _snapshot(root: Path) -> dict[str, tuple[int, str]]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, digest(np.fromfile(path, np.uint8))) for path in files
    }


def _as_train_ids(ids: np.ndarray, pairs: dict[int, int]) -> np.ndarray:
    labels = np.full(ids.shape, 255)
    for train_id, label_id in pairs.items():
        labels[ids == label_id] = train_id
    return labels


def _scene(domain: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    return render(domain, "train", number, **SIZE) if number < 3 else render(domain, "val", number - 3, **SIZE)


@pytest.mark.medium
def test_gta5_files_decode_to_the_scenes(town: Path):
    folder = town / "gta5"
    assert (folder / "train.txt").read_text().split() == ["00001.png", "00002.png", "00003.png"]
    assert (folder / "val.txt").read_text().split() == ["00004.png", "00005.png"]
    for number in range(5):
        image, labels = _scene("gta5", number)
        written = Image.open(folder / "labels" / f"{number + 1:05d}.png")
        assert written.mode == "P"
        ids = np.array(written)
        np.testing.assert_array_equal(_as_train_ids(ids, dict(enumerate(CITYSCAPES_IDS))), labels)
        assert not set(np.unique(ids[labels == 255])) & set(CITYSCAPES_IDS)
        np.testing.assert_array_equal(np.array(Image.open(folder / "images" / f"{number + 1:05d}.png")), image)


@pytest.mark.medium
def test_synthia_files_decode_to_the_scenes(town: Path):
    folder = town / "synthia"
    assert (folder / "train.txt").read_text().split() == ["0000000.png", "0000001.png", "0000002.png"]
    assert (folder / "val.txt").read_text().split() == ["0000003.png", "0000004.png"]
    for number in range(5):
        image, labels = _scene("synthia", number)
        ids = cv2.imread(str(folder / "GT" / "LABELS" / f"{number:07d}.png"), cv2.IMREAD_UNCHANGED)
        assert ids.dtype == np.uint16
        assert ids.shape == (48, 96, 3)
        np.testing.assert_array_equal(_as_train_ids(ids[..., 2], SYNTHIA_IDS), labels)
        things = (labels >= 11) & (labels < 19)
        assert (ids[..., 1][things] > 0).all()
        assert (ids[..., 1][~things] == 0).all()
        np.testing.assert_array_equal(np.array(Image.open(folder / "RGB" / f"{number:07d}.png")), image)


@pytest.mark.medium
def test_cityscapes_files_decode_to_the_scenes(town: Path):
    found = []
    for split, count in (("train", 3), ("val", 2)):
        images = sorted((town / "cityscapes" / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        assert len(images) == count
        for path in images:
            city, stem = path.parent.name, path.name.removesuffix("_leftImg8bit.png")
            assert stem.startswith(f"{city}_00000")
            label = town / "cityscapes" / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            with Image.open(label) as written:
                assert written.mode == "L"
                found.append((digest(np.array(Image.open(path))), digest(np.array(written))))
    lookup = np.array([*CITYSCAPES_IDS, *[1] * (256 - 19)], np.uint8)
    scenes = [_scene("cityscapes", number) for number in range(5)]
    assert sorted(found) == sorted((digest(image), digest(lookup[labels])) for image, labels in scenes)


@pytest.mark.medium
def test_the_drift_goes_from_day_to_dusk_to_fog(town: Path):
    images = sorted((town / "drift/leftImg8bit/val").rglob("*.png"))
    assert [path.parent.name for path in images] == ["day", "day", "dusk", "dusk", "fog", "fog"]
    for index, path in enumerate(images):
        image, _ = render("cityscapes", "drift", index, weather=path.parent.name, **SIZE)
        np.testing.assert_array_equal(np.array(Image.open(path)), image)


@pytest.mark.medium
def test_a_complete_town_is_left_alone(town: Path):
    before = _snapshot(town)
    manifest = json.loads((town / "streets.json").read_text())
    assert manifest == {"preset": "streets-v1", **SIZE, "counts": COUNTS}
    write_streets(town, counts=COUNTS, **SIZE)
    assert _snapshot(town) == before
    assert not [name for name in before if name.endswith(".tmp") or "begun" in name]


@pytest.mark.medium
@pytest.mark.parametrize("other", [{"height": 64}, {"counts": {}}, {"domains": ("gta5",)}])
def test_another_town_in_the_same_place_is_refused(town: Path, other: dict[str, object]):
    before = _snapshot(town)
    with pytest.raises(UserError, match=r"streets\.json.*another --out"):
        write_streets(town, **{"counts": COUNTS, **SIZE, **other})
    assert _snapshot(town) == before


def test_foreign_data_is_refused(tmp_path: Path):
    foreign = tmp_path / "gta5" / "images" / "00001.png"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"theirs")
    with pytest.raises(UserError, match="gta5"):
        write_streets(tmp_path, counts=COUNTS, **SIZE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [foreign]
    assert foreign.read_bytes() == b"theirs"


def test_unknown_domains_and_splits_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="kitti"):
        write_streets(tmp_path / "town", domains=("kitti",))
    with pytest.raises(UserError, match="trian"):
        write_streets(tmp_path / "town", counts={"gta5": {"trian": 3}})
    assert not (tmp_path / "town").exists()


class KilledError(Exception):
    pass


@pytest.mark.medium
def test_an_interrupted_town_is_completed(town: Path, tmp_path: Path):
    def die(count: int) -> None:
        raise KilledError

    root = tmp_path / "town"
    with pytest.raises(KilledError):
        write_streets(root, counts=COUNTS, show_progress=lambda title, total: nullcontext(die), **SIZE)
    assert not (root / "streets.json").exists()
    with pytest.raises(UserError, match="another town"):
        write_streets(root, counts=COUNTS, height=64, width=128)
    (root / "gta5" / "labels" / "00002.png").unlink(missing_ok=True)
    (root / "notes.txt").write_text("mine")
    before = _snapshot(root)
    missing: list[int] = []
    drawn: list[int] = []

    def show_progress(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        missing.append(total)
        return nullcontext(drawn.append)

    write_streets(root, counts=COUNTS, show_progress=show_progress, **SIZE)
    after = _snapshot(root)
    assert 0 < sum(drawn) == missing[0] <= 21
    assert {name for name in before if after.get(name) != before[name]} <= {
        "streets.begun.json",
        "gta5/images/00002.png",
    }
    assert after.pop("notes.txt")
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in _snapshot(town).items()
    }
