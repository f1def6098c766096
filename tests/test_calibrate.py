"""``sfda calibrate``: on runs of any method, ordinary runs come out."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from sfda.cli.calibrate import CALIBRATORS, calibrated_folder, calibration_arguments
from sfda.errors import UserError
from sfda.methods.kinds.rebuild import build_method, rebuild_method
from sfda.methods.pseudo_cal import PseudoCal
from sfda.methods.source_only import SourceOnly
from sfda.runs.checkpoints import read_checkpoint
from sfda.runs.experiment import configs_folder
from sfda.runs.run import Run
from tiny_runs import NETWORK, tiny_arguments

SELECTOR = "[{class_path: sfda.callbacks.select_by_ece.SelectByECE, init_args: {start_after: 0.0}}]"


# --------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("run", "folder"),
    [
        ("runs/streets/ada_bn/seed1", "runs/streets/ada_bn+pseudo_cal/seed1"),
        ("runs/streets/ada_bn+alpha_1/seed12/", "runs/streets/ada_bn+alpha_1+pseudo_cal/seed12"),
        ("mine", "mine+pseudo_cal"),
        ("seed1", "seed1+pseudo_cal"),
        ("/a/seeds", "/a/seeds+pseudo_cal"),
    ],
)
def test_a_calibrated_run_lies_beside_the_run(run, folder):
    assert calibrated_folder(Path(run), "pseudo_cal") == Path(folder)


def test_the_folder_one_stands_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "ada_bn/seed1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "ada_bn/seed1")
    assert calibrated_folder(Path(), "pseudo_cal") == tmp_path / "ada_bn+pseudo_cal/seed1"


def test_arguments_are_those_of_a_fit(tmp_path):
    options = {"network": "mine.build", "views": "multi_scale", "source_checkpoint": "elsewhere.ckpt"}
    config = {"experiment": "tent", "model": {"class_path": "any.Tent", "init_args": options}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "selected.ckpt").touch()
    words = calibration_arguments(tmp_path, "pseudo_cal", Path("there"), ["--data.init_args.batch_size", "2"])
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert words[:2] == ["--config", str(tmp_path / "config.yaml")]
    assert given["--model"].endswith("model/pseudo_cal.yaml")
    assert given["--model.init_args.network"] == "mine.build"
    assert given["--model.init_args.views"] == "multi_scale"
    assert given["--model.init_args.source_checkpoint"] == str(tmp_path / "selected.ckpt")
    assert given["--experiment"] == "tent+pseudo_cal"
    assert given["--out"] == "there"
    # one look at every image, whatever the run was limited to
    assert given["--data.init_args.samples_per_epoch"] == given["--trainer.limit_train_batches"] == "null"
    assert given["--trainer.max_time"] == given["--trainer.val_check_interval"] == "null"
    assert (given["--trainer.max_steps"], given["--trainer.overfit_batches"]) == ("-1", "0.0")
    assert json.loads(given["--model.init_args.calibrated_model"]) == {"class": "any.Tent", **options}
    assert words[-2:] == ["--data.init_args.batch_size", "2"]


def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml"):
        calibration_arguments(tmp_path, "pseudo_cal", None)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"config\.yaml: names no `model` with class_path and init_args"):
        calibration_arguments(tmp_path, "pseudo_cal", None)
    (tmp_path / "config.yaml").write_text("model: {class_path: any.Tent, init_args: {network: mine.build}}")
    with pytest.raises(UserError, match="sfda fit --run"):
        calibration_arguments(tmp_path, "pseudo_cal", None)
    with pytest.raises(UserError, match="temperature_scaling, pseudo_cal, label_calibration"):
        calibration_arguments(tmp_path, "tent", None)


# --------------------------------------------------------------------- runs


@pytest.fixture
def run_of(town, source_model, sfda, tmp_path):
    """Fits a method (or, where it has no fit, scores it); gives its run folder."""

    def make(model, *more, command="fit", name=None):
        folder = tmp_path / "runs" / (name or model) / "seed1"
        source = None if model == "source_training" else source_model
        assert sfda(command, *tiny_arguments(model, town, source), "--out", folder, *more) == 0
        return folder

    return make


def load(folder):
    said = {**Run(folder).model(), "num_classes": 19}
    return build_method(read_checkpoint(str(folder / "selected.ckpt")), said, str(folder)).eval()


def row(folder):
    return json.loads((folder / "result.json").read_text())


def predict(method, size=None):
    images = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return method.predict_probabilities(images, size)


@pytest.mark.medium
def test_a_method_with_a_head_of_its_own_is_calibrated_as_it_predicts(run_of, sfda, capsys):
    run = run_of("label_calibration", "--model.init_args.views", "multi_scale", "--experiment", "lc")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert sfda("calibrate", "--run", run, "--with", "pseudo_cal") == 0
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    out = run.parent.with_name("label_calibration+pseudo_cal") / "seed1"
    inner, calibrated = load(run), load(out)
    assert type(calibrated).__name__ == "PseudoCal"
    report = json.loads((out / "calibration.json").read_text())
    assert report["calibrated"] == "LabelCalibration"

    plain = predict(inner, (48, 96))
    powers = plain.double() ** (1 / report["temperature"])
    got = predict(calibrated, (48, 96))
    torch.testing.assert_close(got.double(), powers / powers.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert torch.equal(got.argmax(1), plain.argmax(1))
    assert torch.equal(got, predict(load(out), (48, 96)))

    (run / "selected.ckpt").unlink()  # what has been calibrated is in the new checkpoint
    assert torch.equal(got, predict(type(calibrated).load_from_checkpoint(out / "selected.ckpt").eval(), (48, 96)))
    assert sfda("validate", "--run", out) == 0
    result = row(out)
    assert result["experiment"] == "lc+pseudo_cal"
    assert result["views"] == "multi_scale"
    assert result["source_free"] is True
    assert result["labels_read"] is None
    assert result["trained_parameters"] == 0


@pytest.mark.medium
def test_a_calibrated_run_scores_the_same_but_for_its_calibration(run_of, sfda):
    run = run_of("source_training", "--model.init_args.lr", "0.05", "--trainer.max_epochs", "2")
    assert sfda("validate", "--run", run) == 0
    assert sfda("calibrate", "--run", run, "--with", "temperature_scaling", "--out", run / "calibrated") == 0
    assert sfda("validate", "--run", run / "calibrated") == 0
    before, after = row(run), row(run / "calibrated")
    for name in before:
        if "iou" in name:
            assert after[name] == before[name], name
    assert after["target_nll"] != before["target_nll"]
    assert after["source_free"] is False
    assert after["labels_read"] == "source"
    assert sfda("calibrate", "--run", run, "--with", "temperature_scaling", "--out", run / "calibrated") == 2


@pytest.mark.medium
def test_the_settings_of_a_training_do_not_stand_in_the_way(run_of, sfda):
    options = ["--trainer.callbacks", SELECTOR, "--trainer.gradient_clip_val", "0.5", "--trainer.max_steps", "2"]
    options += ["--trainer.limit_train_batches", "2", "--trainer.val_check_interval", "2", "--trainer.min_steps", "1"]
    run = run_of("source_training", *options, "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "2")
    for calibrator in CALIBRATORS:
        assert sfda("calibrate", "--run", run, "--with", calibrator, "--data.init_args.num_workers", "0") == 0
        out = run.parent.with_name(f"source_training+{calibrator}") / "seed1"
        assert row(out)["experiment"] == f"SourceTraining+{calibrator}"
        # a source model is what every method starts from
        assert row(out)["source_free"] is (calibrator != "temperature_scaling")
        if calibrator == "label_calibration":
            report = json.loads((out / "label_calibration.json").read_text())
            assert sum(report["pixels"].values()) == 16 * 32 * 64  # every image, not the two batches of the run


@pytest.mark.medium
def test_what_the_calibrated_method_has_read_stays_in_the_row(run_of, sfda):
    run = run_of("target_oracle")
    scaled, both = run.with_name("scaled"), run.with_name("both")
    assert sfda("calibrate", "--run", run, "--with", "pseudo_cal", "--out", run.with_name("pseudo")) == 0
    assert sfda("calibrate", "--run", run, "--with", "temperature_scaling", "--out", scaled) == 0
    assert sfda("calibrate", "--run", scaled, "--with", "pseudo_cal", "--out", both) == 0
    assert sfda("validate", "--run", both) == 0  # a checkpoint knows it too
    for folder, labels, source_free in (("pseudo", "target", True), ("both", "source+target", False)):
        assert row(run.with_name(folder))["labels_read"] == labels
        assert row(run.with_name(folder))["source_free"] is source_free

    # and temperatures follow one another, in the views of the last
    inner, once, twice = load(run), load(scaled), load(both)
    for views in ("single", "multi_scale"):
        inner.views = twice.views = views
        product = once.temperature.double() * twice.temperature.double()
        powers = predict(inner).double() ** (1 / product)
        torch.testing.assert_close(predict(twice).double(), powers / powers.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.medium
def test_the_fit_opens_only_what_the_calibrator_reads(run_of, town, sfda, tmp_path):
    """The labels that an oracle was trained on are no business of its calibration."""
    import shutil

    run = run_of("target_oracle")
    alone = tmp_path / "alone"
    shutil.copytree(town / "cityscapes", alone / "cityscapes", ignore=shutil.ignore_patterns("gtFine"))
    options = ["--data.init_args.target.root", alone / "cityscapes", "--data.init_args.source.root", alone / "gone"]
    assert sfda("calibrate", "--run", run, "--with", "pseudo_cal", *options) == 0


@pytest.mark.medium
def test_a_calibrated_network_is_one_to_start_from(run_of, town, sfda, tmp_path):
    run = run_of("source_training")
    assert sfda("calibrate", "--run", run, "--with", "pseudo_cal", "--out", tmp_path / "calibrated") == 0
    arguments = tiny_arguments("source_only", town, tmp_path / "calibrated/selected.ckpt")
    assert sfda("validate", *arguments, "--out", tmp_path / "scored") == 0
    assert torch.equal(predict(load(run)), predict(load(tmp_path / "scored")))


@pytest.mark.medium
def test_label_calibration_takes_networks_alone(run_of, sfda, capsys):
    for model in ("source_only", "label_calibration"):
        run = run_of(model, command="validate" if model == "source_only" else "fit")
        status = sfda("calibrate", "--run", run, "--with", "label_calibration")
        assert status == (2 if model == "label_calibration" else 0)
    assert "does not predict with its network alone" in capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize("model", ["target_oracle", "mean_teacher"])
def test_label_calibration_hides_nothing_that_was_read(model, run_of, sfda, capsys):
    run = run_of(model)
    assert sfda("calibrate", "--run", run, "--with", "label_calibration") == 2
    assert "source-free and label-free, which it is not" in capsys.readouterr().err


@pytest.mark.medium
def test_what_cannot_be_calibrated_is_a_sentence(run_of, sfda, capsys):
    run = run_of("label_calibration", "--model.init_args.online", "true", command="validate")
    for calibrator in ("pseudo_cal", "label_calibration"):
        assert sfda("calibrate", "--run", run, "--with", calibrator) == 2
        assert "adapts while it is scored" in capsys.readouterr().err
    assert sfda("calibrate", "--run", run, "--with", "tent") == 2
    assert "--with tent: one of" in capsys.readouterr().err


# --------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("model", sorted(path.stem for path in configs_folder().glob("model/*.yaml")))
def test_any_method_is_rebuilt_and_predicts_as_before(model, tmp_path):
    config = yaml.safe_load((configs_folder() / f"model/{model}.yaml").read_text())
    module, _, name = config["class_path"].rpartition(".")
    options = {**config["init_args"], "network": NETWORK, "num_classes": 19}
    method = getattr(importlib.import_module(module), name)(**options)
    stored = {"state_dict": method.state_dict(), "hyper_parameters": {**options, "_class_path": config["class_path"]}}
    if model in CALIBRATORS[:2]:  # a calibrated checkpoint holds what it is a calibration of
        method._wrap(stored_source(), "source")
        method.temperature.fill_(2.0)
        stored["state_dict"] = method.state_dict()
    method.on_save_checkpoint(stored)
    torch.save(stored, tmp_path / "any.ckpt")
    start = {"network": NETWORK, "num_classes": 19, "source_checkpoint": str(tmp_path / "any.ckpt")}
    calibrated = PseudoCal(**start, views=options["views"])
    calibrated.initialise_from_source()
    before, after = predict(method.eval()), predict(calibrated.eval())
    assert torch.equal(after.argmax(1), before.argmax(1))
    torch.testing.assert_close(after, before)  # T = 1


def stored_source():
    """A checkpoint of a source model."""
    options = {"network": NETWORK, "num_classes": 19}
    method = SourceOnly(**options)
    return {
        "state_dict": method.state_dict(),
        "hyper_parameters": {**options, "_class_path": "sfda.methods.source_only.SourceOnly"},
    }


def checkpoint(**options):
    return {"state_dict": {}, "hyper_parameters": {"network": NETWORK, "num_classes": 3, **options}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "does not say of which method it is"),
        ({"_class_path": "nowhere.Method"}, "No module named 'nowhere'"),
        ({"_class_path": "sfda.methods.tent.Tenth"}, "Tenth"),
        ({"_class_path": "sfda.methods.tent.Tensor"}, r"no sfda\.methods\.Method"),
        ({"_class_path": "sfda.methods.source_only.SourceOnly", "network": "mine.build"}, "trained with network mine"),
        ({"_class_path": "sfda.methods.source_only.SourceOnly", "gamma": 1}, "gamma"),
        ({"_class_path": "sfda.methods.source_only.SourceOnly"}, "Missing key"),
        ({"_class_path": "sfda.methods.ada_bn.AdaBN", "online": True}, "adapts while it is scored"),
    ],
)
def test_a_checkpoint_that_cannot_be_rebuilt_is_a_sentence(options, message):
    with pytest.raises(UserError, match=message):
        rebuild_method(checkpoint(**options), {"class": "nowhere.Method", "network": NETWORK, "num_classes": 3}, "it")
