"""Mutated files through every reader: named, or read as what they were; never another error, never another label."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from mutants import damaged, encode, other_files, tokens_changed, with_right_checksums
from sfda.data.images import read_image, read_label_values
from sfda.data.label_spaces import CITYSCAPES19, ClassSet, load_class_set
from sfda.data.layouts import Domain
from sfda.data.pairs import read_pairs
from sfda.data.photographs import look_over
from sfda.data.readers import SegmentationSet
from sfda.errors import UserError
from sfda.pseudo_labels.store import PseudoLabelStore
from tiny_files import (
    FOLDER_CLASSES,
    SIZE,
    save,
    write_acdc,
    write_bdd100k,
    write_cityscapes,
    write_folder,
    write_gta5,
    write_synthia,
)
from tiny_runs import tiny_arguments

FEW, MANY = 40, 1000
COUNTS = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
LAYOUTS = pytest.mark.parametrize("layout", ["gta5", "synthia", "cityscapes", "folder", "acdc", "bdd100k"])
READ_BY_ALL = {"mode L", "mode P", "mode I;16"}
READ_AS_SYNTHIA = READ_BY_ALL | {"mode LA", "mode RGB", "mode RGBA"}
"""Other files that hold the same label."""
GROUPS = """\
names: [road, thing, none]
colours: [[128, 64, 128], [70, 70, 70], [70, 130, 180]]
ids: {10: road, 20: thing, 30: 2}
ignore: [0, 11]
groups: {road: [lane, kerb], thing: [car, pole]}
"""

Read = Callable[[], object]
T = TypeVar("T")


def pairs_of(layout: str, root: Path) -> tuple[SegmentationSet, ClassSet]:
    """The training pairs of a tiny data set."""
    rng = np.random.default_rng(3)
    domain = Domain(layout, str(root))
    if layout == "folder":
        write_folder(root, 3, rng)
        domain = dataclasses.replace(domain, classes=str(root / "classes.yaml"))
    elif layout == "cityscapes":
        write_cityscapes(root, 3, 1, rng)
    else:
        writers = {"gta5": write_gta5, "synthia": write_synthia}
        if layout in writers:
            names = sorted(writers[layout](root, 4, rng))
            (root / "train.txt").write_text("\n".join(names[:3]))
            (root / "val.txt").write_text(names[3])
        else:
            {"acdc": write_acdc, "bdd100k": write_bdd100k}[layout](root, rng)
    classes = load_class_set(domain.classes) if domain.classes else CITYSCAPES19
    return SegmentationSet(domain, "train", True, classes), classes


def attempted(read: Callable[[], T]) -> T | UserError:
    """What is read, or the fault that is named; any other error is raised."""
    try:
        return read()
    except UserError as fault:
        return fault


def outcomes(path: Path, mutants: Iterable[tuple[str, bytes]], read: Read) -> dict[str, set[str]]:
    """Kinds of mutants that were ``named``, read as the ``same``, or read as an ``other``; any other error is raised.

    ``path`` is overwritten with each mutant and is afterwards as it was.
    """
    genuine, expected = path.read_bytes(), read()
    found: dict[str, set[str]] = {"named": set(), "same": set(), "other": set()}
    for number, (kind, content) in enumerate(mutants):
        path.write_bytes(content)
        content_read = attempted(read)
        if isinstance(content_read, UserError):
            assert path.name in str(content_read)
            found["named"].add(f"{kind} {number}")
        else:
            found["same" if content_read == expected else "other"].add(f"{kind} {number}")
    path.write_bytes(genuine)
    assert read() == expected
    return found


def kinds(numbered: set[str]) -> set[str]:
    return {name.rpartition(" ")[0] for name in numbered}


def label_of(samples: SegmentationSet, index: int = 1) -> object:
    label = samples.read(index).label
    assert label is not None
    return label.shape, label.tobytes()


# ---------------------------------------------------------------- labels and images


@COUNTS
@LAYOUTS
def test_no_damaged_label_is_read_as_another(layout: str, count: int, tmp_path: Path) -> None:
    samples, _ = pairs_of(layout, tmp_path)
    path = samples.pairs[1].label
    assert path is not None
    found = outcomes(path, damaged(path.read_bytes(), random.Random(0), count), lambda: label_of(samples))
    assert not found["other"]
    assert len(found["named"]) > 0.9 * count


@LAYOUTS
def test_other_files_under_the_name_of_a_label_are_named_unless_they_hold_it(layout: str, tmp_path: Path) -> None:
    samples, _ = pairs_of(layout, tmp_path)
    path = samples.pairs[1].label
    assert path is not None
    values = read_label_values(path, red_channel=layout == "synthia").astype(np.uint8)
    found = outcomes(path, other_files(values), lambda: label_of(samples))
    assert kinds(found["same"]) == (READ_AS_SYNTHIA if layout == "synthia" else READ_BY_ALL)
    assert not found["other"]


@COUNTS
@pytest.mark.parametrize("layout", ["gta5", "synthia", "cityscapes"])
def test_a_label_whose_chunks_are_changed_never_surfaces_as_another_error(
    layout: str, count: int, tmp_path: Path
) -> None:
    """Whoever writes wrong chunks with right checksums can write any label; the size is that of the image."""
    samples, _ = pairs_of(layout, tmp_path)
    path = samples.pairs[1].label
    assert path is not None
    found = outcomes(path, with_right_checksums(path.read_bytes(), random.Random(0), count), lambda: label_of(samples))
    assert len(found["other"]) < 0.02 * count
    assert len(found["named"]) > 0.4 * count


@COUNTS
@LAYOUTS
def test_a_damaged_image_is_named_or_has_the_size_that_it_declares(layout: str, count: int, tmp_path: Path) -> None:
    """JPEG has no checksum: half of the damaged ones are read with other pixels. PNG has, and none is."""
    samples, _ = pairs_of(layout, tmp_path)
    path = samples.pairs[1].image
    other = 0
    genuine, expected = path.read_bytes(), samples.read(1)
    for _, content in damaged(genuine, random.Random(0), count):
        path.write_bytes(content)
        sample = attempted(lambda: samples.read(1))
        if isinstance(sample, UserError):
            assert str(sample).startswith(f"{samples.pairs[1].name}: ")
            continue
        assert sample.image.shape == expected.image.shape  # that of the label
        assert np.array_equal(sample.label, expected.label)
        other += not np.array_equal(sample.image, expected.image)
    assert other == 0 if path.suffix == ".png" else other < 0.6 * count


@COUNTS
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_damaged_photograph_is_left_out_or_has_the_size_that_was_found(kind: str, count: int, tmp_path: Path) -> None:
    rng, read = np.random.default_rng(0), 0
    (tmp_path / "fine.png").write_bytes(encode_picture(rng, "PNG"))
    path = tmp_path / "mutant.png"
    for _, content in damaged(encode_picture(rng, kind), random.Random(0), count):
        path.write_bytes(content)
        found = look_over(tmp_path)
        assert len(found.images) + len(found.faults) == 2
        assert [fault.path for fault in found.faults] in ([], [path])
        image = attempted(lambda: read_image(path, 2**24))
        if isinstance(image, UserError):
            assert str(path) in str(image)
            continue
        read += 1
        assert image.shape[:2] in found.sizes
        assert not found.faults
    assert read < count


def encode_picture(rng: np.random.Generator, kind: str) -> bytes:
    return encode(Image.fromarray(rng.integers(0, 256, (6, 12, 3), dtype=np.uint8)).resize((60, 30)), kind)


# ---------------------------------------------------------------- class sets and lists


@COUNTS
@pytest.mark.parametrize("content", [FOLDER_CLASSES, GROUPS], ids=["ids", "groups"])
@pytest.mark.parametrize("mutate", [damaged, tokens_changed])
def test_a_mutated_class_set_is_named_or_another_whole_one(mutate, content: str, count: int, tmp_path: Path) -> None:
    """A text without checksum: about one in 25 is another class set, such as one with a value 21 instead of 20."""
    path = tmp_path / "classes.yaml"
    path.write_text(content)
    mutants = mutate(content.encode(), random.Random(0), count)
    found = outcomes(path, mutants, lambda: dataclasses.astuple(load_class_set(str(path))))
    assert len(found["named"]) > 0.8 * count


@COUNTS
@pytest.mark.parametrize("mutate", [damaged, tokens_changed])
def test_a_mutated_list_of_names_is_named_or_names_images_that_are_there(mutate, count: int, tmp_path: Path) -> None:
    """A text without checksum: about one in 15 is another list, most of them cut off between two names."""
    names = sorted(write_gta5(tmp_path, 12, np.random.default_rng(3)))
    path = tmp_path / "train.txt"
    path.write_text("\n".join(names[:8]) + "\n")
    (tmp_path / "val.txt").write_text("\n".join(names[8:]))
    domain = Domain("gta5", str(tmp_path))
    mutants = mutate(path.read_bytes(), random.Random(0), count)
    found = outcomes(path, mutants, lambda: [pair.name for pair in read_pairs(domain, "train", True)])
    assert len(found["named"]) > 0.8 * count


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(FOLDER_CLASSES.replace("30: sky", "10: sky"))
    with pytest.raises(
        UserError, match=r"classes\.yaml: cannot be read as YAML: line 3, column \d+: the key 10 stands"
    ):
        load_class_set(str(path))
    path.write_text("defaults: &a {b: 1}\nc: {<<: *a, b: 2}\n")  # a merge may be overridden
    with pytest.raises(UserError, match="needs the keys `names` and `colours`"):
        load_class_set(str(path))


@pytest.mark.parametrize("content", ["names: " + "[" * 5000, "{a: " * 5000], ids=["lists", "mappings"])
def test_a_file_nested_too_deeply_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"classes\.yaml: cannot be read as YAML"):
        load_class_set(str(path))


def test_groups_hold_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(GROUPS.replace("[lane, kerb]", "[{lane: 1}, 7]"))
    with pytest.raises(UserError, match=r"`groups` must hold names of classes; put quotes around \[\{'lane': 1\}, 7\]"):
        load_class_set(str(path))


# ---------------------------------------------------------------- pseudo-labels


@pytest.fixture
def store(tmp_path: Path) -> PseudoLabelStore:
    store = PseudoLabelStore(tmp_path / "pseudo_labels", {"method": "X", "classes": [f"c{i}" for i in range(19)]})
    store.open()
    label = np.random.default_rng(0).choice([*range(19), 255], SIZE).astype(np.uint8)
    store.write("a", label)
    store.write_temporary("a", {"classes": label, "bins": np.arange(100, dtype=np.int16), "t": np.float32(1.5)})
    store.note({"thresholds": [0.25, 0.5], "predicted": [10, 20]})
    return store


def opened_again(store: PseudoLabelStore) -> object:
    again = PseudoLabelStore(store.folder, store.identity)
    again.open()
    return again.notes, again.report, again.complete


@COUNTS
@pytest.mark.parametrize("what", ["label", "temporary", "manifest"])
def test_no_damaged_file_of_pseudo_labels_is_read_as_another(
    what: str, count: int, store: PseudoLabelStore, tmp_path: Path
) -> None:
    name, read = {
        "label": ("labels/a.png", lambda: store.read("a").tolist()),
        "temporary": (
            "confidences/a.npz",
            lambda: {key: (str(value.dtype), value.tolist()) for key, value in store.read_temporary("a").items()},
        ),
        "manifest": ("manifest.json", lambda: opened_again(store)),
    }[what]
    path = store.folder / name
    found = outcomes(path, damaged(path.read_bytes(), random.Random(0), count), read)
    assert not found["other"]
    assert len(found["named"]) > 0.9 * count


def test_a_manifest_with_another_number_in_it_is_refused(store: PseudoLabelStore) -> None:
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(UserError, match=r"manifest\.json is damaged, its checksum is wrong: delete"):
        opened_again(store)


# ---------------------------------------------------------------- a whole run


@pytest.mark.medium
def test_a_fit_counts_the_mutants_that_it_leaves_out(town: Path, sfda, tmp_path: Path, capsys) -> None:
    shutil.copytree(town / "gta5", tmp_path / "gta5")
    labels = sorted((tmp_path / "gta5/labels").glob("*.png"))[::3]
    draw = random.Random(0)
    for path, (_, content) in zip(labels, damaged(labels[0].read_bytes(), draw, 100), strict=False):
        path.write_bytes(content)
    save(np.zeros((3, 3), np.uint8), labels[0])
    named = {path.name for path in labels if cannot_be_read(path)}
    assert len(named) > 3
    arguments = [*tiny_arguments("source_training", town), "--data.init_args.source.root", tmp_path / "gta5"]
    arguments += ["--data.init_args.samples_per_epoch", 64, "--data.init_args.batch_size", 8]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    error = capsys.readouterr().err
    assert f"{len(named)} bad pairs were left out" in error
    for name in named:
        assert f"labels/{name}: " in error


def cannot_be_read(path: Path) -> bool:
    try:
        return read_label_values(path).shape != (32, 64)
    except UserError:
        return True
