"""Every ``configs/model/*.yaml`` keeps the contract of a method."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from sfda.cli.main import main
from sfda.data.needs import Needs
from sfda.errors import UserError
from sfda.judging.models import source_method
from sfda.judging.verdict import Verdict
from sfda.methods import GatheredMethod, Method, TrainedMethod
from sfda.runs.experiment import configs_folder
from sfda.runs.run import Run
from tiny_runs import die, tiny_arguments

MODELS = sorted(path.stem for path in configs_folder().glob("model/*.yaml"))


def method_class(model: str) -> type[Method]:
    class_path = yaml.safe_load((configs_folder() / f"model/{model}.yaml").read_text())["class_path"]
    module, _, name = class_path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


FITTED = [model for model in MODELS if is_overridden("training_step", method_class(model), Method)]


@pytest.fixture
def source_of(source_model: Path, request: pytest.FixtureRequest) -> Callable[[str], Path | None]:
    """The checkpoint that a method starts from."""

    def find(model: str) -> Path | None:
        if model == "source_training":
            return None
        return request.getfixturevalue("value_net_model") if model == "cal_sfda" else source_model

    return find


SELECTOR = "--trainer.callbacks=[{class_path: sfda.callbacks.select_by_entropy.SelectByEntropy}]"
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("model", MODELS)
def test_config_names_every_hyper_parameter(model):
    config = yaml.safe_load((configs_folder() / f"model/{model}.yaml").read_text())
    parser = ArgumentParser()
    parser.add_class_arguments(method_class(model), "m")
    names = [action.dest.removeprefix("m.") for action in parser._actions if action.dest.startswith("m.")]
    accepted = {name for name in names if not name.endswith(".help")}
    assert set(config["init_args"]) == accepted - {"num_classes"}  # num_classes follows from the data
    assert config["class_path"].split(".")[-2] == model  # one method is one file named like its config


@pytest.mark.parametrize("model", MODELS)
def test_every_option_is_a_scalar(model):
    config = yaml.safe_load((configs_folder() / f"model/{model}.yaml").read_text())
    assert all(value is None or isinstance(value, str | int | float | bool) for value in config["init_args"].values())


@pytest.mark.medium
@pytest.mark.parametrize("model", FITTED)
def test_fit_validate_resume_and_predict(model, town, source_of, sfda, tmp_path):
    arguments = tiny_arguments(model, town, source_of(model))
    epochs = 1 if issubclass(method_class(model), GatheredMethod) else 3
    whole = tmp_path / "whole"
    assert sfda("fit", *arguments, "--trainer.max_epochs", epochs, "--out", whole) == 0
    checkpoint = torch.load(whole / "selected.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == weights(whole / "last.ckpt").keys()

    # saved and loaded: the same predictions
    images = torch.rand(2, 3, 32, 64)
    method = method_class(model).load_from_checkpoint(whole / "selected.ckpt", weights_only=True).eval()
    again = method_class(model).load_from_checkpoint(whole / "selected.ckpt", weights_only=True).eval()
    with torch.no_grad():
        probabilities = method.predict_probabilities(images, (48, 96))
        assert probabilities.shape == (2, 19, 48, 96)
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 48, 96))
        assert torch.equal(probabilities, again.predict_probabilities(images, (48, 96)))

    # scored on both domains
    assert sfda("validate", "--run", whole) == 0
    row = json.loads((whole / "result.json").read_text())
    assert 0 <= row["target_miou"] <= 1
    assert 0 <= row["target_ece"] <= 1
    assert 0 <= row["source_miou"] <= 1
    assert row["source_free"] == (method_class(model).needs.source == "nothing")
    assert {path.name for path in whole.glob("*.png")} >= {"predictions_target.png", "reliability_source.png"}

    # a finished run is refused; an interrupted one goes on to the same weights
    assert sfda("fit", *arguments, "--out", whole) == 2
    if epochs > 1:
        part = tmp_path / "part"
        die([*arguments, "--trainer.max_epochs", str(epochs)], part)
        assert not (part / "result.json").exists()
        assert sfda("fit", *arguments, "--out", part) == 2
        assert sfda("fit", "--run", part) == 0
        assert_equal_weights(whole / "last.ckpt", part / "last.ckpt")


@pytest.mark.medium
@pytest.mark.parametrize(
    "model",
    [m for m in FITTED if issubclass(method_class(m), TrainedMethod) and method_class(m).needs.target == "images"],
)
def test_where_the_verdict_is_worse_the_run_predicts_as_the_source_model(
    model, town, source_of, sfda, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "sfda.callbacks.fit_verdict.judge_without_labels", lambda *_, **__: Verdict("worse", ("so it is said",))
    )
    arguments = [*tiny_arguments(model, town, source_of(model)), "--model.init_args.views", "single"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    images = torch.rand(2, 3, 32, 64)
    kept = method_class(model).load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    source = source_method(Run(tmp_path / "run").model(), 19)
    with torch.no_grad():
        expected = source.predict_probabilities(images)
        torch.testing.assert_close(kept.predict_probabilities(images), expected)


@pytest.mark.medium
@pytest.mark.parametrize(
    "model",
    [m for m in FITTED if issubclass(method_class(m), TrainedMethod) and m != "value_net_training"],
)
def test_a_share_lies_between_where_training_began_and_what_it_led_to(
    model, town, source_of, source_model, sfda, tmp_path
):
    arguments = tiny_arguments(model, town, source_of(model) or source_model)
    assert sfda("fit", *arguments, "--model.init_args.share", 0.25, "--out", tmp_path / "run") == 0
    last = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    kept, start = weights(tmp_path / "run/selected.ckpt"), last["callbacks"]["Interpolation"]["start"]
    if json.loads((tmp_path / "run/result.json").read_text())["verdict"] != "worse":
        for key, value in start.items():
            trained = last["state_dict"][f"network.{key}"]
            expected = 0.75 * value + 0.25 * trained if value.is_floating_point() else trained
            torch.testing.assert_close(kept[f"network.{key}"], expected, rtol=1e-5, atol=1e-6)
    method = method_class(model).load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    with torch.no_grad():
        assert method.predict_probabilities(torch.rand(1, 3, 32, 64)).isfinite().all()


LAYER_NORM = "tiny_network.build_with_layer_norm"
WITHOUT_BATCH_NORM = [model for model in FITTED if model != "ada_bn"]


def on_network(network: str, model: str, town: Path, source: Path | None = None) -> list[str]:
    """Arguments for another network; Cal-SFDA without its value net where no checkpoint has one."""
    arguments = [*tiny_arguments(model, town, source), "--model.init_args.network", network]
    return [*arguments, "--model.init_args.scaling", "none"] if model == "cal_sfda" else arguments


@pytest.fixture(scope="module")
def layer_norm_source(town, tmp_path_factory):
    """A source model without BatchNorm."""
    folder = tmp_path_factory.mktemp("layer_norm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        assert main(["fit", *on_network(LAYER_NORM, "source_training", town), "--out", str(folder)]) == 0
    return folder / "selected.ckpt"


@pytest.mark.medium
@pytest.mark.parametrize("model", WITHOUT_BATCH_NORM)
def test_fit_validate_and_predict_on_a_layer_norm_network(model, town, layer_norm_source, sfda, tmp_path, monkeypatch):
    monkeypatch.setattr("sfda.callbacks.pictures.Pictures.on_validation_end", lambda *_: None)  # take most of the time
    arguments = on_network(LAYER_NORM, model, town, None if model == "source_training" else layer_norm_source)
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    method = method_class(model).load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    with torch.no_grad():
        probabilities = method.predict_probabilities(torch.rand(1, 3, 32, 64), (48, 96))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 48, 96))
    assert sfda("validate", "--run", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["target_nll"] > 0


@pytest.mark.medium
def test_cal_sfda_with_its_value_net_on_a_layer_norm_network(town, layer_norm_source, sfda, tmp_path):
    """The value net has a BatchNorm layer of its own, whose statistics are re-estimated."""
    arguments = on_network(LAYER_NORM, "value_net_training", town, layer_norm_source)
    assert sfda("fit", *arguments, "--out", tmp_path / "value_net") == 0
    both = tmp_path / "value_net/selected.ckpt"
    arguments = [*on_network(LAYER_NORM, "cal_sfda", town, both), "--model.init_args.scaling", "ece"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    before, after = (weights(path)["value_net.norm.running_mean"] for path in (both, tmp_path / "run/last.ckpt"))
    assert not torch.equal(before, after)


@pytest.mark.medium
@pytest.mark.parametrize("model", ["tent", "self_training"])
def test_fit_on_a_group_norm_network(model, town, sfda, tmp_path):
    network = "tiny_network.build_with_group_norm"
    assert sfda("fit", *on_network(network, "source_training", town), "--out", tmp_path / "source") == 0
    arguments = on_network(network, model, town, tmp_path / "source/selected.ckpt")
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0


@pytest.mark.medium
def test_ada_bn_is_refused_on_a_network_without_batch_norm_before_data_is_read(town, sfda, tmp_path, capsys):
    arguments = on_network(LAYER_NORM, "ada_bn", tmp_path / "nowhere")
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "AdaBN changes the running statistics of BatchNorm layers, and tiny_network.build_with_layer_norm" in said
    for instead in ("tent", "info_max", "trains normalisation", "mean_teacher_source_free", "cotta", "multi_scale"):
        assert instead in said
    assert "nowhere" not in said


@pytest.mark.medium
def test_source_only_is_validated_never_fitted(town, source_model, sfda, tmp_path, capsys):
    arguments = tiny_arguments("source_only", town, source_model)
    assert sfda("fit", *arguments, "--out", tmp_path / "fit") == 2
    assert "nothing to fit" in capsys.readouterr().err
    assert sfda("validate", *arguments, "--out", tmp_path / "run") == 0
    row = json.loads((tmp_path / "run/result.json").read_text())
    assert row["trained_parameters"] == 0
    assert row["source_free"] is True
    assert row["selected_by"] is None
    assert row["labels_read"] is None


@pytest.mark.medium
@pytest.mark.parametrize("model", [model for model in FITTED if method_class(model).needs.source == "nothing"])
def test_a_method_receives_only_what_it_declares(model, town, source_of, sfda, tmp_path):
    """Source root and, unless declared, target label root are gone; a fit neither needs nor notices them."""
    alone = tmp_path / "town"
    shutil.copytree(town / "cityscapes", alone / "cityscapes")
    if method_class(model).needs.target != "labels":
        shutil.rmtree(alone / "cityscapes/gtFine")
    assert sfda("fit", *tiny_arguments(model, alone, source_of(model)), "--out", tmp_path / "run") == 0
    whole = tmp_path / "with_everything"
    assert sfda("fit", *tiny_arguments(model, town, source_of(model)), "--out", whole) == 0
    assert_equal_weights(tmp_path / "run/last.ckpt", whole / "last.ckpt")


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model", "more"),
    [("ada_bn", []), ("tent", [SELECTOR]), ("label_calibration", []), ("self_training", [SELECTOR, *TWO])],
    ids=["ada_bn", "tent", "label_calibration", "self_training on two_processes"],
)
def test_a_folder_of_training_images_is_enough(model, more, town, source_of, sfda, tmp_path, capfd):
    images = sorted((town / "cityscapes/leftImg8bit/train").rglob("*.png"))
    (tmp_path / "mine/train/images").mkdir(parents=True)
    for image in images:
        (tmp_path / "mine/train/images" / image.name).symlink_to(image)
    data = ["--data.init_args.target.layout", "folder", "--data.init_args.target.root", str(tmp_path / "mine")]
    arguments = [*tiny_arguments(model, town, source_of(model)), "--data.init_args.source", "null", *data, *more]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    said = f"no validation images in {tmp_path}/mine/val/images: "
    assert capfd.readouterr().err.count(f"{said}the fit is watched on its 16 training images") == 1
    assert sfda("validate", "--run", tmp_path / "run") == 0
    assert capfd.readouterr().err.count(f"{said}only label-free scores, of its 16 training images") == 1
    row = json.loads((tmp_path / "run/result.json").read_text())
    assert row["target_entropy"] > 0
    assert row["target_miou"] is None
    by = "entropy" if SELECTOR in more else "last"
    assert row["selected_by"] == ("verdict" if row["verdict"] == "worse" else by)
    assert sfda("validate", *tiny_arguments("target_oracle", town), *data, "--out", tmp_path / "other") == 2
    assert f"{tmp_path}/mine/val/images: no such folder" in capfd.readouterr().err


@pytest.mark.parametrize("model", MODELS)
def test_every_method_says_itself_what_it_reads(model):
    assert isinstance(vars(method_class(model))["needs"], Needs)


def test_a_class_of_before_is_told_what_to_write():
    message = r"Mine: `reads`, `fit_split` .*`needs = Needs\(target=\"images\", view=\"weak\"\)`.*from sfda.data.needs"
    with pytest.raises(UserError, match=message):
        type("Mine", (TrainedMethod,), {"fit_split": "val", "reads": frozenset({"target_images"})})
    type("Mine", (TrainedMethod,), {"needs": Needs(target="images")})


@pytest.mark.medium
@pytest.mark.parametrize("model", MODELS)
def test_an_audit_sees_every_method_open_what_it_declares(model, town, source_of, sfda, capsys):
    assert sfda("audit", *tiny_arguments(model, town, source_of(model))) == 0
    table = re.findall(
        r"^  (target|source) (training|validation) (images|labels) +(\d+) +\w+ +(\d+) ", capsys.readouterr().out, re.M
    )
    assert len(table) == 8
    needs = method_class(model).needs
    for domain, split, what, adapting, scoring in table:
        declared = needs.reads_images(domain) if what == "images" else needs.reads_labels(domain)
        assert int(adapting) == 0 or declared
        assert (int(scoring) > 0) == (split == "validation")  # the town has labels of both domains
        if model in FITTED and split == {"train": "training", "val": "validation"}[needs.split]:
            assert (int(adapting) > 0) == declared  # the audit sees what it should
    pass


@pytest.mark.medium
def test_validate_needs_weights(town, sfda, tmp_path, capsys):
    assert sfda("validate", *tiny_arguments("ada_bn", town), "--out", tmp_path / "run") == 2
    assert "--ckpt_path" in capsys.readouterr().err


@pytest.mark.medium
def test_views_average_scales_and_flips(source_model):
    method = method_class("source_training").load_from_checkpoint(source_model, weights_only=True, views="multi_scale")
    method.eval()
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        got = method.predict_probabilities(images).numpy()
        total = np.zeros(got.shape)
        for height, width in ((24, 48), (32, 64), (40, 80)):
            view = torch.nn.functional.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
            for mirrored in (False, True):
                logits = method.network(view.flip(3) if mirrored else view)
                logits = torch.nn.functional.interpolate(logits, size=(32, 64), mode="bilinear")
                probabilities = logits.double().softmax(1).numpy()
                total += probabilities[..., ::-1] if mirrored else probabilities
    np.testing.assert_allclose(got, total / 6, atol=1e-5)


@pytest.mark.medium
def test_sixteen_classes_are_reported_over_sixteen_and_over_thirteen(town, sfda, tmp_path):
    """miou13 is the mean over 13 of the same predictions, not a new argmax."""
    arguments = [*tiny_arguments("source_training", town), "--data.init_args.classes", "synthia16"]
    arguments += ["--data.init_args.source.layout", "synthia", "--data.init_args.source.root", town / "synthia"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    assert sfda("validate", "--run", tmp_path / "run") == 0
    row = json.loads((tmp_path / "run/result.json").read_text())
    iou = {key.removeprefix("target_iou_"): row[key] for key in row if key.startswith("target_iou_")}
    assert len(iou) == 16
    for name, left_out in (("target_miou", ()), ("target_miou13", ("wall", "fence", "pole"))):
        values = [value for key, value in iou.items() if key not in left_out and value is not None]
        assert row[name] == pytest.approx(np.mean(values))
    assert row["class_set"] == "synthia16"
