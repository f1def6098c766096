"""Copies of `sfda data cache`: the same bytes as the files, of no file that has changed, and closed with its folder."""

import os
import shutil

import numpy as np
import pytest
import yaml

from sfda.cli.data_cache import copy_pairs
from sfda.data.cache import FOLDER, copy_path, read_copy, write_copy
from sfda.data.errors import BadPair, UnreadableFile
from sfda.data.kinds_of_files import DataFiles
from sfda.data.label_spaces import load_class_set
from sfda.data.readers import Domain, SegmentationSet
from sfda.opened import listening
from tiny_files import write_cityscapes, write_folder, write_gta5, write_synthia

CLASS = "sfda.data.datamodule.DomainAdaptationDataModule"


def domain_of(layout, root):
    rng = np.random.default_rng(3)
    if layout == "cityscapes":
        write_cityscapes(root, 2, 1, rng)
    elif layout == "folder":
        write_folder(root, 2, rng)
        return Domain("folder", str(root), classes=str(root / "classes.yaml"))
    else:
        (write_gta5 if layout == "gta5" else write_synthia)(root, 8, rng)  # a tenth is `val`
    return Domain(layout, str(root))


def samples_of(domain, with_labels=True):
    classes = domain.classes or "cityscapes19"
    return SegmentationSet(domain, "train", with_labels, load_class_set(classes))


def pixels(samples):
    return [(sample.image, sample.label) for sample in map(samples.read, range(len(samples)))]


@pytest.mark.parametrize("layout", ["gta5", "synthia", "cityscapes", "folder"])
def test_copies_hold_what_the_files_hold_and_are_read_in_their_place(layout, tmp_path):
    domain = domain_of(layout, tmp_path / layout)
    samples = samples_of(domain)
    before = pixels(samples)
    assert copy_pairs(domain, samples.pairs) > 0
    for pair in samples.pairs:  # other content, of which size and time say nothing
        for path in (pair.image, pair.label):
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for (image, label), (copied, copied_label) in zip(before, pixels(samples_of(domain)), strict=True):
        np.testing.assert_array_equal(copied, image)
        np.testing.assert_array_equal(copied_label, label)


def test_a_file_that_was_changed_has_no_copy(tmp_path):
    domain = domain_of("cityscapes", tmp_path)
    samples = samples_of(domain)
    copy_pairs(domain, samples.pairs)
    image = samples.pairs[0].image
    status = image.stat()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    heard = []
    with listening(lambda path, is_folder: heard.append(path)):
        samples.read(0)
        samples.read(1)
    assert str(image) in heard
    assert str(samples.pairs[1].image) not in heard
    assert str(copy_path(samples.pairs[1].image, "image")) in heard


def test_a_damaged_copy_is_named(tmp_path):
    domain = domain_of("cityscapes", tmp_path)
    samples = samples_of(domain, with_labels=False)
    copy_pairs(domain, samples.pairs)
    copy = copy_path(samples.pairs[0].image, "image")
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(BadPair, match=rf"{copy.name}.*damaged.*delete it"):
        samples.read(0)


def test_a_copy_whose_shape_was_damaged_is_never_read_as_another(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"anything")
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    write_copy(path, "image", image)
    copy = copy_path(path, "image")
    content = copy.read_bytes()
    for bit in range(8 * (len(content) - image.nbytes)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        copy.write_bytes(damaged)
        with pytest.raises(UnreadableFile, match="delete it"):
            read_copy(path, "image", 10**6)
    for length in (0, 1, 9, 127, 128, len(content) - 1):
        copy.write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match="delete it"):
            read_copy(path, "image", 10**6)


def test_what_is_too_large_is_refused_as_without_a_copy(tmp_path):
    domain = domain_of("cityscapes", tmp_path)
    copy_pairs(domain, samples_of(domain).pairs)
    small = Domain("cityscapes", str(tmp_path), max_pixels=100)
    with pytest.raises(BadPair, match="max_pixels"):
        samples_of(small).read(0)


def test_copies_of_labels_lie_with_the_labels_and_are_what_they_are_of(tmp_path):
    domain = domain_of("cityscapes", tmp_path)
    samples = samples_of(domain)
    copy_pairs(domain, samples.pairs)
    files = DataFiles({"target": domain})
    image, label = samples.pairs[0].image, samples.pairs[0].label
    assert files.kind(str(copy_path(image, "image"))) == files.kind(str(image))
    assert files.kind(str(copy_path(label, "label"))) == files.kind(str(label))
    (link := tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    linked = DataFiles({"target": Domain("cityscapes", str(link))})
    for place in (link, tmp_path):
        copy = place / copy_path(image, "image").relative_to(tmp_path)
        assert linked.kind(str(copy)) == files.kind(str(image)), copy
    shutil.rmtree(tmp_path / "gtFine")
    assert pixels(samples_of(domain, with_labels=False))
    assert not [path for path in tmp_path.rglob("*.npy") if len(np.load(path).shape) == 2]


@pytest.mark.medium
def test_the_command_copies_what_has_no_copy(tmp_path, sfda, capsys):
    domain = domain_of("cityscapes", tmp_path / "town")
    config = tmp_path / "data.yaml"
    target = {"layout": "cityscapes", "root": domain.root}
    config.write_text(yaml.safe_dump({"class_path": CLASS, "init_args": {"target": target}}))
    assert sfda("data", "cache", "--config", config) == 0
    assert "3 pairs have their copies" in capsys.readouterr().out
    copies = sorted(tmp_path.rglob(f"{FOLDER}/*.npy"))
    assert len(copies) == 6
    times = [copy.stat().st_mtime_ns for copy in copies]
    assert sfda("data", "cache", "--config", config) == 0
    assert "0 bytes were written" in capsys.readouterr().out
    assert [copy.stat().st_mtime_ns for copy in copies] == times
    assert samples_of(domain).read(0).image.shape[2] == 3


def test_without_an_image_the_command_says_what_to_do(tmp_path, sfda, capsys):
    config = tmp_path / "data.yaml"
    target = {"layout": "cityscapes", "root": str(tmp_path / "nowhere")}
    config.write_text(yaml.safe_dump({"class_path": CLASS, "init_args": {"target": target}}))
    assert sfda("data", "cache", "--config", config) == 2
    assert "sfda data check" in capsys.readouterr().err


def test_a_copy_keeps_its_bits(tmp_path):
    path = tmp_path / "label.png"
    path.write_bytes(b"anything")
    values = np.arange(65000, 65012, dtype=np.uint16).reshape(3, 4)
    write_copy(path, "label", values)
    stored = np.load(copy_path(path, "label"))
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, values)
