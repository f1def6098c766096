"""`sfda data check`: counts against Pillow's, all faults in one run, exit statuses, no torch."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from sfda.cli.data_check import Findings, SplitReport, check_pairs
from sfda.cli.data_check_tables import print_tables
from sfda.data.label_spaces import CITYSCAPES19, load_class_set
from sfda.data.pairs import read_pairs
from sfda.data.readers import Domain, labels_in
from tiny_files import (
    CITYSCAPES_LABEL_IDS,
    SIZE,
    chunk,
    png,
    save,
    write_cityscapes,
    write_folder,
    write_gta5,
    write_synthia,
)

CLASS = "sfda.data.datamodule.DomainAdaptationDataModule"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def check(sfda, tmp_path, capsys, monkeypatch):
    """Runs `data check` on data options; gives the exit status and what was printed."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(**options: Any) -> tuple[int, str]:
        path = tmp_path / "data.yaml"
        path.write_text(yaml.safe_dump({"class_path": CLASS, "init_args": options}))
        status = sfda("data", "check", "--config", path)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def town_options(town: Path) -> dict[str, Any]:
    return {
        "source": {"layout": "gta5", "root": str(town / "gta5")},
        "target": {"layout": "cityscapes", "root": str(town / "cityscapes")},
    }


# ---------------------------------------------------------------- what is counted


@pytest.mark.medium
def test_the_town_is_clean(town, check):
    status, text = check(**town_options(town))
    assert status == 0
    assert text.splitlines()[-1] == "no faults in 44 pairs"
    assert "train ids" not in text
    rows = {" ".join(line.split()[:2]): line.split()[2:] for line in text.splitlines()}
    assert rows["source train"] == ["16", "16", "16", "0", "32x64"]
    assert rows["target val"] == ["6", "6", "6", "0", "32x64"]
    labels = [np.asarray(Image.open(path)) for path in (town / "cityscapes/gtFine/val").rglob("*_labelIds.png")]
    known = sum(int(np.isin(label, CITYSCAPES_LABEL_IDS).sum()) for label in labels)
    road = sum(int((label == 7).sum()) for label in labels)
    assert rows["■ road"][-2:] == [f"{100 * road / known:.2f}%", f"({sum(bool((x == 7).any()) for x in labels)})"]


@pytest.mark.medium
def test_classes_that_never_occur_are_named(check, tmp_path, rng):
    write_synthia(tmp_path / "s", 30, rng)
    status, text = check(target={"layout": "synthia", "root": str(tmp_path / "s")})
    assert status == 0
    assert "target train: never occurs terrain, truck, train\n" in text


def test_pixels_and_images_of_each_class(tmp_path, rng):
    truth = write_gta5(tmp_path, 3, rng)
    (tmp_path / "train.txt").write_text("\n".join(truth))
    domain = Domain("gta5", str(tmp_path))
    pairs = read_pairs(domain, "train", with_labels=True)
    found = Findings()
    for part in (pairs[:1], pairs[1:]):
        found.add(check_pairs(part, domain, labels_in(domain, CITYSCAPES19)))
    for index in range(256):
        assert found.pixels[index] == sum((label == index).sum() for label in truth.values())
        assert found.images[index] == sum((label == index).any() for label in truth.values())
    assert (found.labelled, found.bad, found.sizes) == (3, 0, {SIZE: 3})


@pytest.mark.medium
def test_mixed_sizes_and_the_classes_of_a_folder(check, tmp_path, rng):
    write_folder(tmp_path / "f", 4, rng)
    classes = str(tmp_path / "f/classes.yaml")
    domain = {"layout": "folder", "root": str(tmp_path / "f"), "classes": classes}
    status, text = check(target=domain, classes=classes)
    assert status == 0
    assert "24x39..30x48, most often 24x48 (1)" in text
    assert all(f"■ {name} " in text for name in ("road", "building", "sky", "car"))
    status, text = check(target=domain)  # scored as cityscapes19
    assert status == 0, "a folder's classes meet those of cityscapes19 by name"


def test_images_with_an_orientation_get_a_remark(tmp_path, rng):
    write_folder(tmp_path, 4, rng)
    for number, orientation in ((0, 3), (1, 6), (2, 1), (3, 3)):
        path = next((tmp_path / "train/images").glob(f"train_{number}.*"))
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path, exif=exif)
        save(np.zeros(SIZE, np.uint8), tmp_path / f"train/labels/train_{number}.png")
    domain = Domain("folder", str(tmp_path), classes=str(tmp_path / "classes.yaml"))
    reports, text = [SplitReport("target", split, domain) for split in ("train", "val")], io.StringIO()
    for report in reports:
        report.pairs = read_pairs(domain, report.split, with_labels=True)
        for pair in report.pairs:  # as processes would do it
            report.found.add(check_pairs([pair], domain, labels_in(domain, load_class_set(domain.classes))))
    print_tables(reports, Console(file=text, width=100))
    assert (
        "target train: images with an EXIF orientation, 3 (turned by 180°): 2, 6 (turned by 90° clockwise): 1; for "
        f"example {tmp_path}/train/images/train_0.png. They are read as viewers show them: their labels must be drawn "
        "on the turned image, not on the stored pixels\n"
    ) in text.getvalue()
    assert "target val: images with" not in text.getvalue()
    (turned,) = reports[0].found.faults
    assert "differ in size: the image has EXIF orientation 6" in turned


def test_labels_that_look_like_train_ids_get_a_remark(tmp_path, rng):
    truth = write_cityscapes(tmp_path, 2, 1, rng)
    save(truth["lindau_000000_000019"], tmp_path / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png")
    domain = Domain("cityscapes", str(tmp_path))
    reports, text = [SplitReport("target", split, domain) for split in ("train", "val")], io.StringIO()
    for report in reports:
        pairs = read_pairs(domain, report.split, with_labels=True)
        report.found.add(check_pairs(pairs, domain, labels_in(domain, CITYSCAPES19)))
        assert not report.found.faults
    print_tables(reports, Console(file=text, width=100))
    assert "target val: the label files look as if they held train ids (0-18, 255)" in text.getvalue()
    assert "target train: the label files" not in text.getvalue()


# ---------------------------------------------------------------- what is wrong


def break_everything(root: Path, rng: np.random.Generator) -> dict[str, str]:
    """A source folder and a target with every fault there is; fault → what must stand in one line."""
    mine, game = root / "mine", root / "game"
    save(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), mine / "train/images/a.png")
    (mine / "train/images/broken.jpg").write_bytes(b"\xff\xd8\xffno picture")
    write_gta5(game, 12, rng)
    lines = [f"{number:05d}" for number in range(1, 13)]
    (game / "train.txt").write_text("\n".join([*lines, "00001", "99999"]))
    (game / "val.txt").write_text("88888\n")
    (game / "images/00001.jpg").write_bytes(b"")
    for path in ("images/00002.png", "labels/00003.png"):
        (game / path).write_bytes((game / path).read_bytes()[:100])
    (game / "images/00004.png").write_bytes(b"hello")
    (game / "labels/00005.png").write_bytes(b"hello")
    save(np.zeros((24, 47), np.uint8), game / "labels/00006.png")
    save(np.full(SIZE, 77, np.uint8), game / "labels/00007.png")
    (game / "labels/00008.png").unlink()
    (game / "images/00009.png").write_bytes(b"")
    (game / "labels/00009.png").write_bytes(b"")  # both of a pair
    save(np.zeros(SIZE, np.uint8), game / "labels/00010.PNG")
    (game / "labels/00011.png").write_bytes(png(30000, 30000, 3, b""))
    (game / "labels/00012.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""))
    return {
        "missing labels": f"source train: {mine}/train/labels: no label for any of the 2 images",
        "unreadable, without labels": f"source train: {mine}/train/images/broken.jpg: ",
        "missing root": f"source val: {mine}/gone: no such folder, and images are expected there",
        "duplicate image": "00001.jpg and ",
        "duplicate label": "00010.PNG and ",
        "duplicate line": f"target train: {game}/train.txt: names '00001' twice",
        "bad list": f"target train: {game}/train.txt: 1 of 14 names have no image, the first being '99999'",
        "bad list of the other split": f"target val: {game}/val.txt: 1 of 1 names have no image",
        "empty": f"target val: {game}: the split `val` is empty",
        "cut image": f"target train: {game}/images/00002.png: the file is cut off",
        "cut label": f"target train: {game}/labels/00003.png: the file is cut off",
        "text image": f"target train: {game}/images/00004.png: cannot be decoded",
        "text label": f"target train: {game}/labels/00005.png: not a PNG",
        "sizes": f"target train: {game}/labels/00006.png: image 24x48 and label 24x47",
        "values": f"target train: {game}/labels/00007.png: values that `gta5` does not have: 77",
        "pixels": f"target train: {game}/labels/00011.png: declares 30000x30000 pixels (height x width), more than",
        "20 bytes": f"target train: {game}/labels/00012.png: cannot be decoded: damaged",
        "no label": f"target train: {game}/images/00008.png: an image without a label, expected is",
        "first of a pair": f"target train: {game}/images/00009.png: the file is empty",
        "second of a pair": f"target train: {game}/labels/00009.png: the file is empty",
    }


@pytest.mark.medium
def test_every_fault_is_found_in_one_run(check, tmp_path, rng):
    expected = break_everything(tmp_path, rng)
    status, text = check(
        source={"layout": "folder", "root": str(tmp_path / "mine"), "val_images": "gone"},
        target={"layout": "gta5", "root": str(tmp_path / "game")},
    )
    lines = [line.removeprefix("✗ ") for line in text.splitlines() if line.startswith("✗ ")]
    for fault, message in expected.items():
        assert sum(message in line for line in lines) == 1, fault
    assert len(lines) == len(expected)
    assert status == 1
    assert text.splitlines()[-1] == "20 faults; 11 of 14 pairs cannot be used"
    rows = {" ".join(line.split()[:2]): line.split()[2:6] for line in text.splitlines()}
    assert rows["source train"] == ["2", "0", "1", "1"]
    assert rows["target train"] == ["12", "11", "2", "10"]


@pytest.mark.medium
def test_a_target_without_training_labels_is_fine(check, tmp_path, rng):
    write_cityscapes(tmp_path / "c", 2, 1, rng)
    (tmp_path / "c/gtFine/train").rename(tmp_path / "elsewhere")
    domain = {"layout": "cityscapes", "root": str(tmp_path / "c")}
    status, text = check(target=domain)
    assert status == 0
    assert "target train: no labels (fine: adapting needs none; scoring does)" in text
    status, text = check(target=domain, source=domain)
    assert status == 1
    assert "✗ source train: " in text
    assert "1 fault; " in text.splitlines()[-1]


@pytest.mark.medium
def test_a_target_of_training_images_alone_is_fine(check, tmp_path, rng):
    write_folder(tmp_path / "f", 2, rng)
    (tmp_path / "f/val").rename(tmp_path / "elsewhere")
    domain = {"layout": "folder", "root": str(tmp_path / "f"), "classes": str(tmp_path / "f/classes.yaml")}
    status, text = check(target=domain)
    assert status == 0
    assert "target val: no images (fine: a method that reads no labels is then watched and scored on the " in text
    status, text = check(target={**domain, "val_images": "vla"})
    assert status == 1
    assert "vla: no such folder, and images are expected there; without such a folder leave `val_images` out" in text


@pytest.mark.medium
def test_files_that_are_left_out_are_named_once_for_each_split_and_are_no_fault(check, tmp_path, rng):
    write_folder(tmp_path / "f", 1, rng)
    for name in ("train/images/a.gif", "train/images/b.gif", "val/images/c.txt"):
        (tmp_path / "f" / name).write_bytes(b"")
    status, text = check(
        target={"layout": "folder", "root": str(tmp_path / "f"), "classes": str(tmp_path / "f/classes.yaml")}
    )
    assert status == 0
    assert text.count("left out") == 2
    assert "target train: 2 files are left out (.gif: 2), for example " in text
    assert "target val: 1 file is left out (.txt: 1), for example " in text


def test_what_is_wrong_with_a_root_is_said_once(check, tmp_path):
    status, text = check(target={"layout": "gta5", "root": str(tmp_path / "gone")}, classes="cityscapes91")
    assert status == 1
    assert text.count("gone: no such folder") == 1
    assert "✗ target train and val: " in text
    assert "✗ config: class set 'cityscapes91'" in text
    assert text.splitlines()[-1] == "2 faults; no pair was found"


def test_a_folder_that_does_not_say_what_its_values_mean(check, tmp_path, rng):
    write_folder(tmp_path / "f", 1, rng)
    status, text = check(target={"layout": "folder", "root": str(tmp_path / "f")})
    assert status == 1
    assert "✗ target train and val: " in text
    assert "set `classes` to the class set" in text


# ---------------------------------------------------------------- configs


def test_where_the_data_options_may_stand(town, sfda, tmp_path, capsys):
    fragment = {"class_path": CLASS, "init_args": town_options(town)}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/town.yaml").write_text(yaml.safe_dump(fragment))
    (tmp_path / "base.yaml").write_text("seed_everything: 1\ndata: data/town.yaml\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 1, "data": fragment}))
    for name in ("base.yaml", "config.yaml"):
        assert sfda("data", "check", "--config", tmp_path / name) == 0
        assert "no faults in 44 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: gone.yaml", "`data` names gone.yaml, which is not there"),
        ("[1, 2]", "it holds no mapping"),
        ("a: [", "cannot be read as YAML"),
        ("init_args: {source: {layout: gta5, root: x}}", "names no `target` domain"),
        ("init_args: {target: {layout: gta5, root: x, rooot: y}}", r"unknown options \['rooot'\]; known are layout"),
        ("init_args: {target: {layout: gta5}}", "`target` lacks root"),
        ("init_args: {target: {layout: gta6, root: x}}", r"known layouts are .* did you mean gta5\?"),
        ("init_args: {target: {layout: gta5, root: 3}}", "no text: root"),
        (
            "init_args: {target: {layout: gta5, root: x, max_pixels: many}}",
            "`max_pixels` that is no whole number: 'many'",
        ),
        ("init_args: {target: data/x}", "must be a mapping"),
    ],
)
def test_a_config_that_cannot_be_used(content, message, sfda, tmp_path, capsys):
    import re

    (tmp_path / "my.yaml").write_text(content)
    assert sfda("data", "check", "--config", "my.yaml") == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


@pytest.mark.medium
def test_torch_is_not_imported(town, tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"class_path": CLASS, "init_args": town_options(town)}))
    code = (
        "import sys; from sfda.cli.main import main; "
        f"status = main(['data', 'check', '--config', {str(path)!r}]); print('torch' in sys.modules, status)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-2:] == ["no faults in 44 pairs", "False 0"]
