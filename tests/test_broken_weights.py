"""A network that gives no numbers stops every command that predicts, and the image is named."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from sfda.errors import UserError
from sfda.networks.finite import refuse_nan
from sfda.runs.checkpoints import read_checkpoint
from tiny_runs import tiny_arguments

FITS = ["ada_bn", "label_calibration", "pseudo_cal", "temperature_scaling"]  # one pass
FITS += ["self_training", "iapc", "cal_sfda"]  # labels come first
FITS += ["info_max"]  # CollapseGuard looks first
FITS += ["source_training", "value_net_training"]  # training is first


def with_weights(source: Path, target: Path, value: float, key: str = "network.network.classifier.weight") -> Path:
    """A copy of a run whose checkpoint holds `value` all over one tensor."""
    shutil.copytree(source.parent, target)
    checkpoint = torch.load(source, weights_only=True)
    checkpoint["state_dict"][key].fill_(value)
    path = target / source.name
    path.unlink()
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("conv.weight", torch.nan, True),
        ("conv.weight", torch.inf, True),
        ("norm.running_var", -1.0, True),
        ("norm.running_var", 0.0, False),  # a dead channel
        ("mask", -torch.inf, False),  # as attention has it
    ],
)
def test_weights_that_are_no_numbers_are_found_when_they_are_read(key, value, refused, tmp_path):
    state = {"count": torch.tensor(3), "empty": torch.ones(0), key: torch.tensor([1.0, value])}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    if not refused:
        read_checkpoint(str(tmp_path / "a.ckpt"))
        return
    with pytest.raises(UserError, match=rf"a\.ckpt cannot be used: {key} holds .*check the source checkpoint"):
        read_checkpoint(str(tmp_path / "a.ckpt"))


def test_the_image_is_named_whose_pixel_has_no_prediction():
    logits = torch.zeros(3, 4, 2, 2)
    logits[:, 1] = -torch.inf  # probability 0
    refuse_nan(logits, ["a", "b", "c"], "")
    for value in (torch.nan, torch.inf):
        logits[1, 2, 0, 1] = value  # the softmax of +inf is NaN too
        with pytest.raises(UserError, match=r"for b: do so"):
            refuse_nan(logits, ["a", "b", "c"], "do so")
        with pytest.raises(UserError, match=r"for a, b: do so"):  # views: no row is an image
            refuse_nan(logits, ["a", "b"], "do so")


@pytest.mark.medium
def test_every_command_that_reads_a_checkpoint_refuses_nan(town, source_model, sfda, tmp_path, capsys):
    path = with_weights(source_model, tmp_path / "run", torch.nan)
    images = town / "cityscapes/leftImg8bit/val"
    for arguments in (
        ("validate", *tiny_arguments("source_only", town, path), "--out", tmp_path / "a"),
        ("validate", "--run", path.parent),
        ("fit", *tiny_arguments("ada_bn", town, path), "--out", tmp_path / "b"),
        ("calibrate", "--run", path.parent, "--with", "pseudo_cal"),
        ("calibrate", "--run", path.parent, "--with", "label_calibration"),
        ("predict", "--run", path.parent, "--images", images, "--out", tmp_path / "c"),
    ):
        assert sfda(*arguments) == 2
        assert f"{path} cannot be used: network.network.classifier.weight holds NaN" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


@pytest.fixture
def overflowing(source_model, tmp_path) -> Path:
    """A checkpoint of finite weights whose logits overflow."""
    return with_weights(source_model, tmp_path / "overflowing", 3e38)


def names(town: Path) -> list[str]:
    return [path.stem.removesuffix("_leftImg8bit") for path in town.rglob("*.png")]


@pytest.mark.medium
@pytest.mark.parametrize("model", FITS)
def test_a_fit_from_a_network_that_predicts_nan_stops_at_its_first_images(
    model, town, overflowing, request, sfda, tmp_path, capsys
):
    if model == "cal_sfda":
        source = request.getfixturevalue("value_net_model")
        overflowing = with_weights(source, tmp_path / "value_net", 3e38)
    more = ["--trainer.limit_val_batches", 0] if model in FITS[:4] else []  # no validation would find it either
    assert sfda("fit", *tiny_arguments(model, town, overflowing), *more, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert f"check the source checkpoint {overflowing}" in error or error.endswith("check the source checkpoint\n")
    assert any(name in error for name in names(town)), error
    assert not list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("source_only", ["--model.init_args.views", "single"]),
        ("source_only", ["--model.init_args.views", "multi_scale"]),
        ("ada_bn", ["--model.init_args.online", "true", "--model.init_args.alpha", 1]),
        ("tent", ["--model.init_args.online", "true"]),
    ],
)
def test_a_network_that_predicts_nan_is_not_scored(model, more, town, overflowing, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments(model, town, overflowing), *more]
    assert sfda("validate", *arguments, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "predicts NaN or infinity for " in error
    assert f"check the source checkpoint {overflowing}" in error
    assert any(name in error for name in names(town))
    assert not (tmp_path / "run/result.json").exists()


@pytest.mark.medium
def test_predict_writes_nothing_of_a_network_that_predicts_nan(town, overflowing, sfda, tmp_path, capsys):
    images = next((town / "cityscapes/leftImg8bit/val").iterdir())
    assert sfda("predict", "--run", overflowing.parent, "--images", images, "--out", tmp_path / "out") == 2
    assert f"for {images}{os.sep}" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))
