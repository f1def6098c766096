"""Data sets in their real encodings: round trips, what is touched, label values, pairs at fault."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch._utils import ExceptionWrapper

from sfda.data.errors import (
    BadPair,
    MissingLabels,
    MissingRoot,
    UnreadableFile,
)
from sfda.data.formats import ORIENTATIONS
from sfda.data.images import read_label_values
from sfda.data.label_spaces import CITYSCAPES19, SYNTHIA13, SYNTHIA16, ClassSet, load_class_set
from sfda.data.pairs import read_pairs
from sfda.data.readers import FAULT, Domain, SegmentationSet, count_values, labels_in, train_ids_suspected
from sfda.errors import UserError
from sfda.opened import listening
from tiny_files import (
    FOLDER_CLASSES,
    SIZE,
    png,
    png16,
    save,
    write_acdc,
    write_bdd100k,
    write_cityscapes,
    write_folder,
    write_gta5,
    write_synthia,
)

CAMVID = """\
names: [sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist]
colours: [[128,128,128],[128,0,0],[192,192,128],[128,64,128],[60,40,222],[128,128,0],[192,128,128],[64,64,128],
          [64,0,128],[64,64,0],[0,128,192]]
ignore: [11]
groups_of_cityscapes19:
  sky: [sky]
  building: [building, wall]
  pole: [pole]
  road: [road]
  pavement: [sidewalk]
  tree: [vegetation, terrain]
  sign: [traffic light, traffic sign]
  fence: [fence]
  car: [car, truck, bus, train]
  pedestrian: [person]
  bicyclist: [rider, motorcycle, bicycle]
"""
# road, sidewalk, building, wall, fence, pole, light, sign, vegetation, terrain, sky, person, rider, car, truck, bus,
# train, motorcycle, bicycle
CAMVID_OF_CITYSCAPES = [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def write(layout: str, root: Path, rng: np.random.Generator) -> tuple[Domain, dict[str, np.ndarray]]:
    """A tiny data set with train and val."""
    if layout == "cityscapes":
        return Domain("cityscapes", str(root)), write_cityscapes(root, 3, 2, rng)
    if layout == "folder":
        return Domain("folder", str(root), classes=str(root / "classes.yaml")), write_folder(root, 3, rng)
    if layout in ("acdc", "bdd100k"):
        return Domain(layout, str(root)), (write_acdc if layout == "acdc" else write_bdd100k)(root, rng)
    truth = (write_gta5 if layout == "gta5" else write_synthia)(root, 5, rng)
    names = sorted(truth)
    (root / "train.txt").write_text("\n".join(names[:3]) + "\n")
    (root / "val.txt").write_text("\n".join(names[3:]) + "\n")
    return Domain(layout, str(root)), truth


def gta5(root: Path, rng: np.random.Generator, n: int = 2) -> Domain:
    write_gta5(root, n, rng)
    (root / "train.txt").write_text("\n".join(f"{i:05d}" for i in range(1, n + 1)))
    return Domain("gta5", str(root))


def own_classes(domain: Domain) -> ClassSet:
    return load_class_set(domain.classes) if domain.classes else CITYSCAPES19


LAYOUTS = pytest.mark.parametrize("layout", ["gta5", "synthia", "cityscapes", "folder", "acdc", "bdd100k"])


# ---------------------------------------------------------------- round trips


@LAYOUTS
def test_images_and_labels_come_back_as_they_were_written(layout: str, tmp_path: Path, rng) -> None:
    domain, truth = write(layout, tmp_path, rng)
    seen = {}
    for split, count in (("train", 3), ("val", 3 if layout == "folder" else 2)):
        samples = SegmentationSet(domain, split, with_labels=True, class_set=own_classes(domain))
        assert len(samples) == count
        for index in range(count):
            sample = samples.read(index)
            written = np.asarray(Image.open(samples.pairs[index].image).convert("RGB"))
            assert sample.image.dtype == np.uint8
            assert sample.image.flags.c_contiguous
            tolerance = 2 if samples.pairs[index].image.suffix == ".jpg" else 0  # two JPEG decoders
            assert np.abs(sample.image.astype(int) - written).max() <= tolerance
            assert sample.label is not None
            assert sample.label.dtype == np.uint8
            seen[sample.name] = sample.label
    assert seen.keys() == truth.keys()
    for name, label in truth.items():
        np.testing.assert_array_equal(seen[name], label)


def test_names_and_splits_of_the_official_layouts(tmp_path: Path, rng) -> None:
    city, _ = write("cityscapes", tmp_path / "c", rng)
    assert [pair.name for pair in read_pairs(city, "train", False)] == [
        "aachen_000000_000019",
        "aachen_000002_000019",
        "bremen_000001_000019",
    ]
    pair = read_pairs(city, "val", True)[1]
    assert pair.image == tmp_path / "c/leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png"
    assert pair.label == tmp_path / "c/gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"
    game, _ = write("gta5", tmp_path / "g", rng)
    assert [pair.name for pair in read_pairs(game, "train", False)] == ["00001", "00002", "00003"]
    assert read_pairs(game, "val", True)[0].label == tmp_path / "g/labels/00004.png"
    synthia, _ = write("synthia", tmp_path / "s", rng)
    assert read_pairs(synthia, "train", True)[0].image == tmp_path / "s/RGB/0000000.png"
    assert read_pairs(synthia, "train", True)[0].label == tmp_path / "s/GT/LABELS/0000000.png"


def test_synthia_class_is_the_red_channel_with_and_without_alpha(tmp_path: Path) -> None:
    channels = np.stack(np.broadcast_arrays(np.arange(23)[None, :], 700, 5), axis=-1)
    (tmp_path / "three.png").write_bytes(png16(channels))
    bgra = np.concatenate([channels[..., ::-1], np.full((1, 23, 1), 65535)], axis=-1).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "four.png"), bgra)
    for name in ("three.png", "four.png"):
        values = read_label_values(tmp_path / name, red_channel=True)
        assert values.tolist() == [list(range(23))]


@pytest.mark.parametrize("wanted", [SYNTHIA16, SYNTHIA13])
@pytest.mark.parametrize("layout", ["gta5", "synthia", "cityscapes"])
def test_labels_in_a_smaller_class_set(layout: str, wanted: ClassSet, tmp_path: Path, rng) -> None:
    domain, truth = write(layout, tmp_path, rng)
    left_out = {9, 14, 16} if wanted is SYNTHIA16 else {3, 4, 5, 9, 14, 16}
    kept = [train_id for train_id in range(19) if train_id not in left_out]
    sample = SegmentationSet(domain, "train", True, wanted).read(0)
    expected = [[kept.index(v) if v in kept else 255 for v in row] for row in truth[sample.name].tolist()]
    assert sample.label is not None
    assert sample.label.tolist() == expected


def test_cityscapes_labels_in_the_11_classes_of_a_yaml_file(tmp_path: Path, rng) -> None:
    domain, truth = write("cityscapes", tmp_path, rng)
    (tmp_path / "camvid.yaml").write_text(CAMVID)
    sample = SegmentationSet(domain, "val", True, load_class_set(str(tmp_path / "camvid.yaml"))).read(0)
    assert sample.label is not None
    expected = [[255 if v == 255 else CAMVID_OF_CITYSCAPES[v] for v in row] for row in truth[sample.name].tolist()]
    assert sample.label.tolist() == expected
    assert set(np.unique(sample.label)) == {*range(11), 255}


def test_folders_of_a_users_own_names(tmp_path: Path) -> None:
    save(np.zeros((*SIZE, 3), np.uint8), tmp_path / "shots/1.png")
    save(np.full(SIZE, 20, np.uint8), tmp_path / "truth/1.png")
    (tmp_path / "classes.yaml").write_text(FOLDER_CLASSES)
    classes = str(tmp_path / "classes.yaml")
    domain = Domain("folder", str(tmp_path), classes, val_images="shots", val_labels="truth")
    label = SegmentationSet(domain, "val", True, load_class_set(classes)).read(0).label
    assert label is not None
    assert (label == 1).all()


# ---------------------------------------------------------------- source-free


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that are opened, listed or asked for while the test runs."""
    paths: list[str] = []
    for function in ("stat", "lstat", "access"):
        original = getattr(os, function)

        def recorded(path, *args, _original=original, **kwargs):
            if isinstance(path, str | os.PathLike):
                paths.append(os.fspath(path))
            return _original(path, *args, **kwargs)

        monkeypatch.setattr(os, function, recorded)
    with listening(lambda path, is_folder: paths.append(path)):
        yield paths


LABEL_ROOTS = {
    "gta5": "labels", "synthia": "GT", "cityscapes": "gtFine", "folder": "train/labels",
    "acdc": "gt", "bdd100k": "labels",
}  # fmt: skip
IMAGE_ROOTS = {
    "gta5": "images", "synthia": "RGB", "cityscapes": "leftImg8bit/train", "folder": "train/images",
    "acdc": "rgb_anon", "bdd100k": "images/10k/train",
}  # fmt: skip


def read_all(domain: Domain, with_labels: bool, classes: ClassSet) -> list[str]:
    samples = SegmentationSet(domain, "train", with_labels, classes)
    samples.train_ids_suspected()
    return [samples.read(index).name for index in range(len(samples))]


@LAYOUTS
def test_without_labels_nothing_under_the_label_folder_is_touched(layout: str, tmp_path: Path, rng, touched) -> None:
    domain, _ = write(layout, tmp_path, rng)
    classes = own_classes(domain)
    label_root = str(tmp_path / LABEL_ROOTS[layout])
    touched.clear()
    with_labels = read_all(domain, True, classes)
    assert any(path.startswith(label_root) for path in touched)  # the recorder sees what it should
    touched.clear()
    without = read_all(domain, False, classes)
    assert without == with_labels
    assert [path for path in touched if path.startswith(label_root)] == []
    assert sum(path.endswith((".png", ".jpg")) for path in set(touched)) == len(without)


@LAYOUTS
def test_a_search_for_missing_images_leaves_labels_alone(layout: str, tmp_path: Path, rng, touched) -> None:
    domain, _ = write(layout, tmp_path, rng)
    shutil.rmtree(tmp_path / IMAGE_ROOTS[layout])
    touched.clear()
    with pytest.raises(MissingRoot):
        read_pairs(domain, "train", False)
    assert touched
    assert [path for path in touched if path.startswith(str(tmp_path / LABEL_ROOTS[layout]))] == []


@LAYOUTS
def test_images_are_read_with_the_label_root_gone(layout: str, tmp_path: Path, rng) -> None:
    domain, _ = write(layout, tmp_path, rng)
    (tmp_path / LABEL_ROOTS[layout]).rename(tmp_path / "elsewhere")
    classes = own_classes(domain)
    samples = SegmentationSet(domain, "train", False, classes)
    assert [pair.label for pair in samples.pairs] == [None] * 3
    assert samples.read(0).label is None
    with pytest.raises(MissingLabels, match="no label for any of the 3 images"):
        SegmentationSet(domain, "train", True, classes)


# ---------------------------------------------------------------- lookup table


@st.composite
def class_sets(draw: st.DrawFn) -> ClassSet:
    count = draw(st.integers(2, 30))
    values = draw(st.lists(st.integers(0, 65535), unique=True, max_size=60))
    cut = draw(st.integers(0, len(values)))
    ids = {value: draw(st.integers(0, count - 1)) for value in values[:cut]}
    names = tuple(f"class {i}" for i in range(count))
    return ClassSet("random", names, ((0, 0, 0),) * count, ids, frozenset(values[cut:]))


@settings(deadline=None, max_examples=60)
@given(own=class_sets(), data=st.data())
def test_lookup_table_is_the_map_value_by_value(own: ClassSet, data: st.DataObject) -> None:
    shared = data.draw(st.lists(st.sampled_from(own.names), unique=True, min_size=1))
    names = (*shared, "something else")
    wanted = ClassSet("wanted", names, ((0, 0, 0),) * len(names), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfda.data.readers.load_class_set", lambda name: own)
        table = labels_in(Domain("folder", "unused", classes="random"), wanted)
    assert table.shape == (65536,)
    assert table.dtype == np.uint8
    for value in range(65536) if len(own.ids) % 10 == 0 else [*own.ids, *own.ignore, 0, 254, 255, 65535]:
        if value in own.ids:
            name = own.names[own.ids[value]]
            expected = names.index(name) if name in names else 255
        else:
            expected = 255 if value in own.ignore else FAULT
        assert table[value] == expected


def test_values_that_the_official_layouts_have() -> None:
    for layout, values in (("gta5", [*range(35), 255]), ("cityscapes", [*range(34), 255])):
        table = labels_in(Domain(layout, "unused"), CITYSCAPES19)
        assert np.flatnonzero(table != FAULT).tolist() == values
    table = labels_in(Domain("synthia", "unused"), CITYSCAPES19)
    assert np.flatnonzero(table != FAULT).tolist() == list(range(23))
    assert {9, 14, 16}.isdisjoint(table[:23].tolist())


def test_folder_must_say_what_its_label_values_mean(tmp_path: Path, rng) -> None:
    write_folder(tmp_path, 1, rng)
    domain = Domain("folder", str(tmp_path))
    assert len(SegmentationSet(domain, "train", False, CITYSCAPES19)) == 1
    with pytest.raises(UserError, match="set `classes` to the class set"):
        SegmentationSet(domain, "train", True, CITYSCAPES19)


# ---------------------------------------------------------------- train ids in the files


def write_train_ids(layout: str, root: Path, rng: np.random.Generator) -> tuple[Domain, dict[str, np.ndarray]]:
    """A tiny data set whose label files have been converted in place."""
    if layout == "folder":
        domain, truth = Domain("folder", str(root), classes="cityscapes19"), write_folder(root, 3, rng)
        truth = {name: rng.choice([*range(19), 255], label.shape).astype(np.uint8) for name, label in truth.items()}
    else:
        domain, truth = write(layout, root, rng)
    for split in ("train", "val"):
        for pair in read_pairs(domain, split, True):
            assert pair.label is not None
            save(truth[pair.name], pair.label)
    return domain, truth


LABEL_IDS_EXPECTED = pytest.mark.parametrize("layout", ["gta5", "cityscapes", "folder"])


@LABEL_IDS_EXPECTED
def test_files_in_train_ids_are_suspected_and_read_with_an_option(layout: str, tmp_path: Path, rng) -> None:
    domain, truth = write_train_ids(layout, tmp_path, rng)
    suspicion = SegmentationSet(domain, "train", True, CITYSCAPES19).train_ids_suspected()
    assert suspicion is not None
    assert suspicion.endswith("set `label_values: train_ids` for this domain")
    for path in tmp_path.rglob("*_labelTrainIds.png"):
        path.unlink()
    samples = SegmentationSet(replace(domain, label_values="train_ids"), "train", True, CITYSCAPES19)
    assert samples.train_ids_suspected() is None
    for index in range(3):
        sample = samples.read(index)
        np.testing.assert_array_equal(sample.label, truth[sample.name])


@LAYOUTS
def test_files_as_they_ought_to_be_are_not_suspected(layout: str, tmp_path: Path, rng) -> None:
    domain, _ = write(layout, tmp_path, rng)
    assert SegmentationSet(domain, "train", True, own_classes(domain)).train_ids_suspected() is None


@pytest.mark.parametrize(
    ("values", "suspected"),
    [
        ([0, 1, 2, 8, 10, 255], True),
        ([0, 0, 0], True),
        ([0, 8, 10], False),  # a third is not more than a third
        ([0, 1, 2, 3, 4, 5, 6, 26], False),  # a car in label ids
        ([1, 1, 1, 34], False),
        ([7, 7, 7], False),  # road alone
        ([7, 8, 11, 255], False),
        ([], False),
    ],
)
def test_what_looks_like_train_ids(values: list[int], suspected: bool) -> None:
    pixels = count_values(np.array(values, np.uint8))
    assert (train_ids_suspected(Domain("gta5", "unused"), pixels) is not None) == suspected
    assert train_ids_suspected(Domain("gta5", "unused", label_values="train_ids"), pixels) is None
    assert train_ids_suspected(Domain("synthia", "unused"), pixels) is None
    assert train_ids_suspected(Domain("folder", "unused", classes="mine.yaml"), pixels) is None


def test_few_label_files_are_looked_at_and_damaged_ones_left_to_their_pairs(tmp_path: Path, rng, touched) -> None:
    domain = gta5(tmp_path, rng, n=12)
    (tmp_path / "labels/00003.png").write_bytes(b"hello")
    samples = SegmentationSet(domain, "train", True, CITYSCAPES19)
    touched.clear()
    samples.train_ids_suspected()
    assert set(touched) == {str(tmp_path / f"labels/{number:05d}.png") for number in range(1, 9)}


def test_the_files_of_cityscapes_in_train_ids_are_read_where_they_are(tmp_path: Path, rng) -> None:
    domain, truth = write("cityscapes", tmp_path, rng)
    for path in tmp_path.rglob("*_labelIds.png"):
        path.unlink()
    sample = SegmentationSet(replace(domain, label_values="train_ids"), "val", True, CITYSCAPES19).read(0)
    np.testing.assert_array_equal(sample.label, truth[sample.name])


def test_train_ids_in_a_smaller_class_set(tmp_path: Path, rng) -> None:
    domain, truth = write_train_ids("folder", tmp_path, rng)
    domain = replace(domain, classes="synthia16", label_values="train_ids")
    sample = SegmentationSet(domain, "train", True, SYNTHIA16).read(0)
    assert sample.label is not None
    kept = [train_id for train_id in range(19) if train_id not in {9, 14, 16}]
    expected = [[kept.index(v) if v in kept else 255 for v in row] for row in truth[sample.name].tolist()]
    assert sample.label.tolist() == expected


def test_label_values_that_contradict_the_files_or_the_class_set(tmp_path: Path, rng) -> None:
    domain = replace(gta5(tmp_path / "g", rng, n=1), label_values="train_ids")
    message = str(fault(domain))
    assert "values that are no train ids: 19, 20, " in message
    assert message.endswith("leave out `label_values: train_ids` if they are label ids")
    mine, _ = write("folder", tmp_path / "f", rng)
    with pytest.raises(UserError, match=r"leave it out: `ids` of .*classes\.yaml say what the values .* mean"):
        SegmentationSet(replace(mine, label_values="train_ids"), "train", True, CITYSCAPES19)
    with pytest.raises(UserError, match="`label_values`: label_ids or train_ids, not 'trainIds'"):
        read_pairs(replace(domain, label_values="trainIds"), "train", False)  # type: ignore[arg-type]


# ---------------------------------------------------------------- single pairs at fault


def fault(domain: Domain, index: int = 0) -> BadPair:
    samples = SegmentationSet(domain, "train", True, CITYSCAPES19)
    for other in range(len(samples)):
        if other != index:
            samples.read(other)
    with pytest.raises(BadPair) as caught:
        samples.read(index)
    return caught.value


def test_some_labels_missing(tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng)
    (tmp_path / "labels/00002.png").unlink()
    error = fault(domain, 1)
    assert (error.name, error.path) == ("00002", tmp_path / "labels/00002.png")
    assert "No such file" in str(error)


def test_sizes_differ(tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng)
    save(np.zeros((24, 47), np.uint8), tmp_path / "labels/00002.png")
    assert "image 24x48 and label 24x47 (height x width) differ in size" in str(fault(domain, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_drawn_on_the_stored_pixels_of_a_turned_image(orientation: int, tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng)
    (tmp_path / "images/00001.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "images/00001.jpg"
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path, exif=exif)
    samples = SegmentationSet(domain, "train", True, CITYSCAPES19)
    if orientation > 4:
        assert (
            "00001.png: image 48x24 and label 24x48 (height x width) differ in size: the image has EXIF orientation "
            f"{orientation} (viewers show it {ORIENTATIONS[orientation]}), its label seems to be drawn on the stored "
            "pixels: save the label turned likewise, or remove the orientation from the image (exiftool -Orientation= "
            f"{path})"
        ) in str(fault(domain))
        save(np.zeros(SIZE[::-1], np.uint8), tmp_path / "labels/00001.png")
    assert samples.read(0).image.shape[:2] == samples.read(0).label.shape  # drawn on the turned image
    save(np.zeros((24, 47), np.uint8), tmp_path / "labels/00001.png")
    assert str(fault(domain)).endswith("label 24x47 (height x width) differ in size")


@pytest.mark.parametrize("where", ["images", "labels"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut off before its end"),
        (lambda data: data[:-1], "cut off before its end"),
        (lambda data: b"", "the file is empty"),
        (lambda data: b"just text\n", "PNG|cannot be decoded"),
        (lambda data: data[:60] + b"\x55" * 40 + data[100:], "damaged"),
        (lambda data: data[:8] + data[-12:], "damaged"),
        (lambda data: png(30000, 30000, 3, b""), "declares 30000x30000 pixels"),
    ],
    ids=["half", "one byte", "empty", "text", "overwritten", "a PNG of 20 bytes", "30000x30000 pixels"],
)
def test_damaged_files(where: str, damage, message: str, tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng)
    path = tmp_path / where / "00001.png"
    path.write_bytes(damage(path.read_bytes()))
    error = fault(domain)
    assert error.path == path
    assert any(part in str(error) for part in message.split("|"))


def test_the_limit_on_pixels_is_an_option_of_the_domain(tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng, n=1)
    samples = SegmentationSet(replace(domain, max_pixels=24 * 48), "train", True, CITYSCAPES19)
    assert samples.read(0).image.shape == (*SIZE, 3)
    with pytest.raises(BadPair, match=r"images/00001\.png: declares 24x48 pixels .* than `max_pixels` 1151: cut"):
        SegmentationSet(replace(domain, max_pixels=24 * 48 - 1), "train", True, CITYSCAPES19).read(0)
    save(np.zeros((25, 48), np.uint8), tmp_path / "labels/00001.png")
    with pytest.raises(BadPair, match=r"labels/00001\.png: declares 25x48 pixels"):
        samples.read(0)
    for limit in (0, 2**30 + 1):
        with pytest.raises(UserError, match=f"`max_pixels`: from 1 to .*, not {limit}"):
            read_pairs(replace(domain, max_pixels=limit), "train", False)


def test_the_licence_plate_of_gta5_is_ignored(tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng, n=1)
    save(np.full(SIZE, 34, np.uint8), tmp_path / "labels/00001.png")
    label = SegmentationSet(domain, "train", True, SYNTHIA16).read(0).label
    assert label is not None
    assert (label == 255).all()


@pytest.mark.parametrize("values", [[35], [254], [35, 36, 37, 38, 39, 40]])
def test_values_outside_the_map(values: list[int], tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng)
    label = np.zeros(SIZE, np.uint8)
    label[3, : len(values)] = values
    save(label, tmp_path / "labels/00001.png")
    shown = ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
    assert f"values that `gta5` does not have: {shown}; is this" in str(fault(domain))


def test_values_outside_the_map_of_a_users_class_set(tmp_path: Path, rng) -> None:
    write_folder(tmp_path, 1, rng)
    save(np.full(SIZE, 50, np.uint8), tmp_path / "train/labels/train_0.png")
    yaml = str(tmp_path / "classes.yaml")
    samples = SegmentationSet(Domain("folder", str(tmp_path), yaml), "train", True, load_class_set(yaml))
    with pytest.raises(BadPair, match=r"values without a class: 50; add them to `ids` or `ignore` of .*classes\.yaml"):
        samples.read(0)


def test_bad_pairs_survive_workers() -> None:
    error = BadPair("00001", Path("labels/00001.png"), "cut off")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.name, copy.path, copy.reason) == (BadPair, "00001", error.path, "cut off")
    assert str(copy) == str(error) == "00001: labels/00001.png: cut off"
    unreadable = pickle.loads(pickle.dumps(UnreadableFile(Path("a.png"), "cut off")))
    assert str(unreadable) == "a.png: cut off"


def test_torch_hands_a_workers_bad_pair_on() -> None:
    try:
        raise BadPair("00001", Path("labels/00001.png"), "cut off")
    except BadPair:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # what a worker sends
    with pytest.raises(BadPair, match=r"00001: labels/00001\.png: cut off"):
        pickle.loads(pickle.dumps(wrapped)).reraise()
