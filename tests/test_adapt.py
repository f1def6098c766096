"""``sfda weights`` and ``sfda adapt`` as somebody with a model and a folder uses them."""

import importlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sfda.cli.main import main
from sfda.judging.verdict import Verdict
from sfda.networks.build import build_network
from sfda.runs import engine
from tiny_network import build

NETWORK = "tiny_network.build"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of the tiny network as a training script of before 2020 left them."""
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in build(19).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    return tmp_path / "w.pth"


@pytest.fixture
def photographs(town: Path, tmp_path: Path) -> Path:
    for number, image in enumerate(sorted((town / "cityscapes/leftImg8bit/train").rglob("*.png"))):
        place = tmp_path / f"photographs/day{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    return tmp_path / "photographs"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stages run here instead of in processes of their own; gives their commands."""
    ran: list[list[str]] = []

    def run(console, words, log, title, *, group):
        ran.append(list(words))
        assert main(words) == 0

    def ask(module: str, function: str, *arguments: object) -> object:
        return getattr(importlib.import_module(module), function)(*arguments)

    monkeypatch.setattr(engine, "run_sfda", run)
    monkeypatch.setattr(engine, "asked", ask)
    monkeypatch.setattr("sfda.cli.adapt.preload", lambda: None)
    return ran


@pytest.mark.medium
def test_imported_weights_are_those_of_the_file_and_start_any_method(weights, town, sfda, tmp_path, capsys):
    assert sfda("weights", "import", weights, "--network", NETWORK, "--out", tmp_path / "source.ckpt") == 0
    assert "torch, before 1.6; 14 tensors under 'state_dict' fill tiny_network.build" in capsys.readouterr().out
    plain = build(19).eval()
    stored = torch.load(weights, weights_only=True)["state_dict"]
    plain.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    checkpoint = torch.load(tmp_path / "source.ckpt", weights_only=True)
    segmenter = build_network(NETWORK, 19).eval()
    segmenter.load_state_dict({name.removeprefix("network."): v for name, v in checkpoint["state_dict"].items()})
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(plain(images), (32, 64), mode="bilinear")
        assert torch.equal(segmenter(images), logits)
    data = {"target": {"layout": "cityscapes", "root": str(town / "cityscapes")}, "batch_size": 4, "num_workers": 0}
    data = {"class_path": "sfda.data.datamodule.DomainAdaptationDataModule", "init_args": data}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    words = ["own/tent", "--config", tmp_path / "source.yaml", "--data", tmp_path / "mine.yaml"]
    assert sfda("fit", *words, "--trainer.max_epochs", "1", "--out", tmp_path / "run") == 0
    assert sfda("weights", "import", weights, "--network", NETWORK, "--out", tmp_path / "source.ckpt") == 2
    assert "source.ckpt is there already" in capsys.readouterr().err


@pytest.mark.medium
def test_weights_are_inspected(weights, sfda, capsys):
    assert sfda("weights", "inspect", weights) == 0
    said = capsys.readouterr().out
    assert "w.pth: torch, before 1.6" in said
    assert "  module.backbone.0.weight  (8, 3, 3, 3)" in said
    assert sfda("weights", "inspect", weights, "--network", NETWORK) == 0
    assert f"12 of 12 tensors of {NETWORK} are there under state_dict" in capsys.readouterr().out
    assert sfda("weights", "inspect", weights, "--network", "smp:Unet/resnet18") == 2
    assert "its tensors (module.backbone.0.weight" in capsys.readouterr().err


@pytest.mark.medium
def test_adapt_ends_with_a_model_a_table_and_a_picture(weights, photographs, in_this_process, sfda, tmp_path, capsys):
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    assert sfda(*words) == 0
    said = capsys.readouterr().out
    assert "photographs: 16 images; 16 of 64x32" in said
    assert "infomax" in said
    assert re.search(r"auto: (better than the source|worse than the source|cannot tell) \(", said)
    assert "adapted model: " in said or "keep the source model: " in said  # its weights are random
    folder = tmp_path / "out"
    assert [command[0] for command in in_this_process] == ["validate", "validate", "fit", "validate"]
    for picture in ("source.png", "before_after.png"):
        assert Image.open(folder / picture).size[0] > 500
    row = json.loads((folder / "auto/result.json").read_text())
    assert row["source_free"] is True
    assert row["target_miou"] is None
    assert 0 <= row["target_view_agreement"] <= 1
    # the commands that it stood for say the same again
    lines = (folder / "commands.sh").read_text().splitlines()[2:]
    assert [line.split()[1] for line in lines] == [
        "validate",
        "validate",
        "fit",
        "validate",
        "judge",
        "predict",
        "export",
    ]
    # the same command again has nothing to do; another one is refused
    in_this_process.clear()
    assert sfda(*words) == 0
    assert in_this_process == []
    assert sfda(*words, "--minutes", "3") == 2
    assert "was begun with --minutes 10: give another --out" in capsys.readouterr().err


@pytest.mark.medium
def test_interrupted_in_its_last_run_it_goes_on_there(
    weights, photographs, in_this_process, sfda, tmp_path, monkeypatch
):
    class Killed(BaseException):
        """What no code of ours or Lightning's answers."""

    def interrupted(*_):
        raise Killed

    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    words += ["--method", "tent"]
    with monkeypatch.context() as patch:
        patch.setattr("sfda.methods.tent.Tent.on_train_epoch_end", interrupted, raising=False)
        with pytest.raises(Killed):
            sfda(*words)
    assert not (tmp_path / "out/tent/result.json").exists()
    in_this_process.clear()
    plan = (tmp_path / "out/adapt.json").read_bytes()
    assert sfda(*words) == 0
    assert [command[0] for command in in_this_process] == ["fit", "validate"]
    assert (tmp_path / "out/adapt.json").read_bytes() == plan


@pytest.mark.medium
def test_a_scheduler_may_end_it(weights, photographs, in_this_process, sfda, tmp_path, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(engine, "run_sfda", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    assert sfda(*words) == 128 + signal.SIGTERM
    assert "sfda: interrupted (SIGTERM); the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.medium
@pytest.mark.parametrize("bias", [0.0, 30.0])
def test_a_source_model_that_sees_one_class_is_warned_of(
    bias, weights, photographs, in_this_process, sfda, tmp_path, capsys
):
    stored = torch.load(weights, weights_only=True)
    stored["state_dict"]["module.classifier.bias"] += bias * torch.eye(19)[3]
    stored["state_dict"]["module.classifier.weight"] *= 8  # so that the unbiased one is sure of several
    torch.save(stored, weights)
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    assert sfda(*words, "--method", "source_only") == 0
    assert ("the source model sees 1.0 classes in these images" in capsys.readouterr().out) == bool(bias)


@pytest.mark.medium
def test_a_share_of_what_was_trained_is_kept(weights, photographs, in_this_process, sfda, tmp_path):
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    words += ["--method", "info_max", "--share", "auto"]
    assert sfda(*words) == 0
    report = json.loads((tmp_path / "out/info_max/selection.json").read_text())
    assert report["share"] in [row["share"] for row in report["shares"]]
    assert "--model.init_args.share auto" in (tmp_path / "out/commands.sh").read_text()
    assert sfda(*words[:-1], "0.5") == 2  # begun with another one


@pytest.mark.medium
def test_a_soup_trains_on_top_of_what_auto_has_chosen(
    weights, photographs, in_this_process, sfda, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("sfda.callbacks.fit_verdict.is_replaced", lambda *_: False)
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    assert sfda(*words, "--method", "auto", "model_soup") == 0
    assert "30 steps of" in capsys.readouterr().out
    auto, soup = (
        torch.load(tmp_path / f"out/{name}/selected.ckpt", weights_only=True) for name in ("auto", "model_soup")
    )
    assert soup["input_scale"] == auto["input_scale"]
    for key, value in auto["state_dict"].items():
        assert torch.equal(soup["state_dict"][key.replace("network.", "start.module.", 1)], value)
    assert soup["global_step"] == 30


@pytest.mark.medium
def test_a_model_that_is_judged_worse_is_not_recommended(
    weights, photographs, in_this_process, sfda, tmp_path, capsys, monkeypatch
):
    worse = Verdict("worse", ("class coverage falls from 0.9 to 0.1",))
    monkeypatch.setattr("sfda.cli.judge.judge_without_labels", lambda *_, **__: worse)
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    assert sfda(*words) == 0
    said = capsys.readouterr().out
    assert "auto: worse than the source (class coverage falls from 0.9 to 0.1)" in said
    assert f"keep the source model: {tmp_path / 'out/source_only/selected.ckpt'} (source_only)" in said
    assert "adapted model:" not in said


@pytest.mark.medium
def test_images_that_have_come_are_no_part_of_what_was_begun(
    weights, photographs, in_this_process, sfda, tmp_path, capsys
):
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    assert sfda(*words, "--method", "source_only") == 0
    shutil.copy(next((photographs / "day0").iterdir()), photographs / "new.png")
    assert sfda(*words, "--method", "source_only") == 2
    assert "was begun with 16 images" in (said := capsys.readouterr().err)
    assert "which has 17 now (the first other one: new.png)" in said


@pytest.mark.medium
def test_labels_in_train_ids_are_known_by_their_looks(weights, photographs, in_this_process, sfda, tmp_path, capsys):
    (tmp_path / "labels/day0").mkdir(parents=True)
    for image in (photographs / "day0").iterdir():
        Image.new("L", (64, 32), 2).save(label := tmp_path / "labels/day0" / image.name)
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--method", "source_only"]
    words += ["--labels", tmp_path / "labels"]
    assert sfda(*words, "--out", tmp_path / "out") == 2
    assert "give --label-values train_ids and another --out" in capsys.readouterr().err
    assert in_this_process == []
    Image.new("L", (64, 32), 2).save(label.with_name("other.png"))
    assert sfda(*words, "--label-values", "train_ids", "--out", tmp_path / "again") == 0
    assert "1 label maps have no image of their name, for example" in capsys.readouterr().out
    assert json.loads((tmp_path / "again/source_only/result.json").read_text())["target_miou"] is not None


@pytest.mark.medium
def test_labels_score_and_are_adapted_to_by_nothing(
    weights, photographs, town, in_this_process, sfda, tmp_path, capsys
):
    labels = tmp_path / "labels/day0"
    labels.mkdir(parents=True)
    for image in sorted((photographs / "day0").iterdir())[:3]:
        name = image.name.replace("_leftImg8bit", "_gtFine_labelIds")
        shutil.copy(next((town / "cityscapes/gtFine/train").rglob(name)), labels)
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    words += ["--labels", tmp_path / "labels", "--classes", "cityscapes19", "--method", "tent"]
    assert sfda(*words) == 0
    said = capsys.readouterr().out
    assert "16 images, 3 with labels" in said
    assert "has seen these images too" in " ".join(said.split())  # 13 others are too few to gather from
    assert "mIoU" in said
    assert "on 3 labelled images, 95 % interval" in said
    row = json.loads((tmp_path / "out/tent/result.json").read_text())
    assert row["labels_read"] is None
    assert 0 <= row["target_miou"] <= 1
    assert len(list((tmp_path / "out/images/val").iterdir())) == 3
    assert len(list((tmp_path / "out/images/labels").iterdir())) == 3


def grey16(path: Path) -> None:
    Image.fromarray(np.full((32, 64), 40000, dtype=np.uint16)).save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 64), (90, 80, 70)).save(path, exif=exif)


@pytest.mark.medium
def test_odd_photographs_are_taken_as_they_are(weights, photographs, in_this_process, sfda, tmp_path, capsys):
    Image.new("L", (64, 32), 90).save(photographs / "grey.png")
    grey16(photographs / "deep.png")
    Image.new("CMYK", (64, 32), (1, 2, 3, 4)).save(photographs / "print.jpg")
    turned(photographs / "turned.jpg")
    Image.new("RGB", (30, 60), (9, 9, 9)).save(photographs / "tall.webp")
    (photographs / "cut.jpg").write_bytes((photographs / "print.jpg").read_bytes()[:200])
    words = ["adapt", "--source", weights, "--network", NETWORK, "--images", photographs, "--out", tmp_path / "out"]
    assert sfda(*words) == 0
    said = capsys.readouterr().out
    assert "21 images; 20 of 64x32, 1 of 30x60" in said
    assert "1 images have another shape" in said
    assert "cut.jpg: the file is cut off" in said


def spoilt(here: Path) -> Path:
    stored = torch.load(here / "w.pth", weights_only=True)
    stored["state_dict"]["module.classifier.bias"][0] = torch.nan
    torch.save(stored, here / "nan.pth")
    return here / "nan.pth"


MISTAKES: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "no source": (lambda here: ["--source", here / "none.pth"], "none.pth: no such file or folder"),
    "no network": (
        lambda here: [],
        "holds weights, not the network that they belong to (torch, before 1.6, 14 tensors",
    ),
    "another network": (lambda here: ["--network", "smp:Unet/resnet18"], "name the network that they belong to"),
    "no images": (lambda here: ["--images", here / "none"], "none: no such folder"),
    "a file": (lambda here: ["--images", here / "w.pth"], "w.pth: a file; give the folder it is in"),
    "no such method": (lambda here: ["--network", NETWORK, "--method", "tnt"], "did you mean tent"),
    "no such class set": (lambda here: ["--network", NETWORK, "--classes", "a.yaml"], "class set 'a.yaml'"),
    "out in images": (
        lambda here: ["--network", NETWORK, "--out", here / "photographs/out"],
        "lies in the folder of the",
    ),
    "NaN": (
        lambda here: ["--source", spoilt(here), "--network", NETWORK],
        "holds NaN, infinity or a negative variance",
    ),
    "no time": (lambda here: ["--minutes", "0"], "--minutes 0: a time above 0"),
    "no share": (
        lambda here: ["--network", NETWORK, "--method", "tent", "--share", "half"],
        "--share half: auto, or a",
    ),
    "large share": (lambda here: ["--network", NETWORK, "--method", "tent", "--share", "1.5"], "a number from 0 to 1"),
    "share of nothing": (lambda here: ["--network", NETWORK, "--share", "0.5"], "--share 0.5: nothing here trains"),
    "no options": (lambda here: ["--network-options", "{heat: a}"], "--network-options: heat: unknown; give a mapping"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_runs(mistake, weights, photographs, sfda, tmp_path, capsys):
    more, message = MISTAKES[mistake]
    words = ["--source", weights, "--images", photographs, "--out", tmp_path / "out", *more(tmp_path)]
    if mistake == "no options":
        words += ["--network", NETWORK]
    assert sfda("adapt", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
