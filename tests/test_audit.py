"""``sfda audit``: what a fit opens is what its method declares, whoever opens it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from cv2 import imread  # as a module has it that is imported before the audit begins
from PIL import Image

from sfda.data.images import read_image, read_label_values
from sfda.data.kinds_of_files import DataFiles, Kind, may_adapt, may_score
from sfda.data.layouts import Domain
from sfda.data.needs import Needs
from sfda.data.transforms import RandomViews
from sfda.methods.cotta import CoTTA
from sfda.methods.tent import Tent
from sfda.opened import Opened, listening, recorded
from tiny_files import write_cityscapes, write_folder, write_gta5
from tiny_runs import tiny_arguments

# --------------------------------------------------------------------- what is seen


def by_open(path: Path) -> None:
    path.read_bytes()


def by_pillow(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def by_opencv(path: Path) -> None:
    assert cv2.imread(str(path)) is not None


def by_an_earlier_import_of_opencv(path: Path) -> None:
    assert imread(str(path)) is not None


def by_a_program(path: Path) -> None:
    subprocess.run(["cat", str(path)], check=True, capture_output=True)


SEEN = [read_image, read_label_values, by_open, by_pillow, by_opencv]
UNSEEN = [by_an_earlier_import_of_opencv, by_a_program]


@pytest.fixture
def label(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / "label.png")
    return folder / "label.png"


def opened_by(function: Callable[[], object], folder: Path) -> list[Opened]:
    """What a function opens, with a watch on a folder."""
    with recorded(folder.parent / "log", [str(folder)]) as found:
        function()
    return [file for file in found if Path(file.path).parent == folder]


@pytest.mark.parametrize("reader", SEEN)
def test_readers_are_seen_with_their_stack(reader, label):
    (opened,) = opened_by(lambda: reader(label), label.parent)
    assert opened.path == str(label)
    assert not opened.is_folder
    assert opened.below(reader.__name__)
    assert not opened.below("record")


@pytest.mark.parametrize("reader", UNSEEN)
def test_what_python_does_not_see_is_seen_by_linux(reader, label):
    assert opened_by(lambda: reader(label), label.parent) == [Opened(str(label), is_folder=False)]


def test_a_relative_path_is_the_whole_one_and_a_list_of_a_folder_is_seen(label, monkeypatch):
    monkeypatch.chdir(label.parent)
    (opened,) = opened_by(lambda: Path("label.png").read_bytes(), label.parent)
    assert opened.path == str(label)
    with recorded(label.parent.parent / "another", []) as found:
        list(label.parent.iterdir())
    assert [(file.path, file.is_folder) for file in found] == [(str(label.parent), True)]


def test_nobody_listens_afterwards(label):
    opencv, heard = cv2.imread, []
    with listening(lambda path, is_folder: heard.append(path)):
        assert cv2.imread is not opencv
        label.read_bytes()
    assert cv2.imread is opencv
    label.read_bytes()
    assert heard == [str(label)]


# --------------------------------------------------------------------- what it is


@pytest.fixture
def two_domains(tmp_path: Path) -> dict[str, Domain]:
    rng = np.random.default_rng(0)
    write_gta5(tmp_path / "gta5", 3, rng)
    for split, names in (("train", "00001\n00002"), ("val", "00003")):
        (tmp_path / f"gta5/{split}.txt").write_text(names)
    write_cityscapes(tmp_path / "cityscapes", 2, 1, rng)
    return {
        "source": Domain("gta5", str(tmp_path / "gta5")),
        "target": Domain("cityscapes", str(tmp_path / "cityscapes")),
    }


AACHEN, LINDAU = "aachen/aachen_000000_000019", "lindau/lindau_000000_000019"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"cityscapes/leftImg8bit/train/{AACHEN}_leftImg8bit.png", ("target", "train", "images")),
        (f"cityscapes/leftImg8bit/val/{LINDAU}_leftImg8bit.png", ("target", "val", "images")),
        (f"cityscapes/gtFine/train/{AACHEN}_gtFine_labelIds.png", ("target", "train", "labels")),
        (f"cityscapes/gtFine/train/{AACHEN}_gtFine_labelTrainIds.png", ("target", "train", "labels")),
        (f"cityscapes/gtFine/val/{LINDAU}_gtFine_labelIds.png", ("target", "val", "labels")),
        (f"cityscapes/gtCoarse/train/{AACHEN}_gtCoarse_labelIds.png", ("target", None, "other files")),
        ("gta5/images/00001.png", ("source", "train", "images")),
        ("gta5/images/00003.png", ("source", "val", "images")),
        ("gta5/labels/00003.png", ("source", "val", "labels")),
        ("gta5/train.txt", ("source", "train", "list")),
        ("gta5/../gta5/labels/00001.png", ("source", "train", "labels")),
        ("link_to_a_label.png", ("target", "train", "labels")),
        ("gta5_of_another/images/00001.png", None),
    ],
)
def test_a_file_is_what_its_layout_says(path, kind, two_domains, tmp_path):
    (tmp_path / "link_to_a_label.png").symlink_to(tmp_path / f"cityscapes/gtFine/train/{AACHEN}_gtFine_labelIds.png")
    assert DataFiles(two_domains).kind(str(tmp_path / path)) == (kind and Kind(*kind))


def test_a_class_set_among_the_data_is_none_of_them_and_photographs_behind_links_are(tmp_path):
    write_folder(tmp_path / "mine", 2, np.random.default_rng(0))
    classes = tmp_path / "mine/classes.yaml"
    (tmp_path / "linked/train").mkdir(parents=True)
    (tmp_path / "linked/train/images").symlink_to(tmp_path / "mine/train/images")
    files = DataFiles({"target": Domain("folder", str(tmp_path / "linked"))}, [classes])
    assert files.kind(str(classes)) is None
    for folder in ("mine", "linked"):
        assert files.kind(str(tmp_path / folder / "train/images/train_0.png")) == Kind("target", "train", "images")
    assert str(tmp_path / "mine/train/images") not in files.folders_without(lambda kind: kind.what == "images")
    assert str(tmp_path / "mine/train/images") in files.folders_without(lambda kind: False)


def test_what_may_be_opened():
    images, labels, other = (Kind("target", "train", what) for what in ("images", "labels", "other files"))
    assert [may_adapt(kind, Needs(target="images")) for kind in (images, labels, other)] == [True, False, False]
    assert [may_adapt(kind, Needs(source="labels")) for kind in (images, labels, other)] == [False, False, False]
    assert [may_adapt(kind, Needs(target="labels")) for kind in (images, labels, other)] == [True, True, True]
    assert not may_adapt(Kind("source", "train", "list"), Needs(target="labels"))
    assert [may_score(images, stand_in=stand_in) for stand_in in (False, True)] == [False, True]
    assert [may_score(labels, stand_in=stand_in) for stand_in in (False, True)] == [False, False]
    assert may_score(Kind("source", "val", "labels"), stand_in=False)


# --------------------------------------------------------------------- leaks


def first_of(town: Path, folder: str) -> Path:
    return min((town / folder).rglob("*.png"))


def planted(cls: type, name: str, leak: Callable[[Path], None], path: Path, patch: pytest.MonkeyPatch) -> None:
    """A method of a class that also opens a file."""
    original = getattr(cls, name)

    def leaking(self, *arguments, **options):
        leak(path)
        return original(self, *arguments, **options)

    patch.setattr(cls, name, leaking)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("leak", "folder", "kind"),
    [
        (by_open, "cityscapes/gtFine/train", "target training labels"),
        (by_pillow, "cityscapes/gtFine/val", "target validation labels"),
        (by_opencv, "cityscapes/gtFine/train", "target training labels"),
        (by_open, "gta5/images", "source (training|validation) images"),
    ],
)
def test_a_leak_is_named_with_its_stack(leak, folder, kind, town, source_model, sfda, capsys, monkeypatch):
    path = first_of(town, folder)
    planted(Tent, "compute_losses", leak, path, monkeypatch)
    assert sfda("audit", *tiny_arguments("tent", town, source_model)) == 1
    said = capsys.readouterr().out
    assert_matches(rf"adapting opens {kind}: {path}\nin the process itself", said)
    assert f"in {leak.__name__}\n" in said
    assert "training_step" in said  # of the project's own code
    assert "site-packages" not in said
    assert_matches(rf"  {kind} +1 +no ", said)
    assert "files or folders opened beyond that: 1\n" in said


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text


@pytest.mark.medium
def test_a_leak_in_a_worker_of_a_loader_is_seen(town, source_model, sfda, capsys, monkeypatch):
    path = first_of(town, "cityscapes/gtFine/train")
    planted(RandomViews, "__call__", by_open, path, monkeypatch)
    arguments = [*tiny_arguments("tent", town, source_model), "--data.init_args.num_workers", "1"]
    assert sfda("audit", *arguments) == 1
    said = capsys.readouterr().out
    assert f"adapting opens target training labels: {path}\nin a worker of a loader" in said
    assert "in by_open\n" in said


@pytest.mark.medium
def test_a_leak_by_a_program_is_seen_without_a_stack(town, source_model, sfda, capsys, monkeypatch):
    path = first_of(town, "cityscapes/gtFine/train")
    planted(Tent, "compute_losses", by_a_program, path, monkeypatch)
    assert sfda("audit", *tiny_arguments("tent", town, source_model)) == 1
    assert f"adapting opens target training labels: {path}\nby no Python code" in capsys.readouterr().out


@pytest.mark.medium
def test_a_method_that_adapts_while_it_is_scored_may_open_no_label_that_scoring_may(
    town, source_model, sfda, capsys, monkeypatch
):
    path, original = first_of(town, "cityscapes/gtFine/val"), CoTTA.adapt_online

    def adapt_online(self, images):
        by_open(path)
        original(self, images)

    monkeypatch.setattr(CoTTA, "adapt_online", adapt_online)
    assert sfda("audit", *tiny_arguments("cotta", town, source_model)) == 1
    assert f"adapting opens target validation labels: {path}\n" in capsys.readouterr().out


# --------------------------------------------------------------------- the command


@pytest.mark.medium
def test_a_run_is_audited_by_its_config_and_nothing_stays(town, source_model, sfda, capsys, monkeypatch, tmp_path):
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    run = tmp_path / "run"
    assert sfda("fit", *tiny_arguments("tent", town, source_model), "--out", run) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert sfda("audit", "--run", run) == 0
    said = capsys.readouterr().out
    assert "✓ adapting may open target images, as Tent declares; scoring, the validation sets: nothing else" in said
    assert f"checkpoints: {source_model}" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert list(temporary.iterdir()) == []


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["streets/tent", "--out", "there"], "in a temporary folder: leave --out away"),
        (["--run", "nowhere"], "--run nowhere: not a run folder"),
        (["streets/tnet"], "there is no such experiment; did you mean streets/tent"),
        (["--config", "experiment/streets/base.yaml", "--model", "Tent"], "give --model FILE"),
    ],
)
def test_a_mistake_is_a_sentence(words, message, sfda, capsys):
    assert sfda("audit", *words) == 2
    assert message in capsys.readouterr().err
