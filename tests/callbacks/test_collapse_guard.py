import json

import numpy as np
import pytest
import torch

import sfda.callbacks.collapse_guard as guard
from sfda.callbacks.collapse_guard import CollapseGuard
from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.methods.source_only import SourceOnly
from tiny_runs import NETWORK, die, tiny_arguments

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


@pytest.fixture(scope="module")
def good_source(town, tmp_path_factory):
    """A source model that has learnt something: 120 steps."""
    from sfda.cli.main import main

    folder = tmp_path_factory.mktemp("good") / "run"
    arguments = [*tiny_arguments("source_training", town), "--model.init_args.optimizer", "adamw"]
    arguments += ["--model.init_args.lr", "0.01", "--model.init_args.alpha", "0", "--trainer.max_epochs", "10"]
    arguments += ["--data.init_args.samples_per_epoch", "48", "--trainer.check_val_every_n_epoch", "10"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        patch.setenv("PL_GLOBAL_SEED", "0")
        assert main(["fit", *arguments, "--out", str(folder)]) == 0
    return folder / "selected.ckpt"


def fit(sfda, town, source, folder, *more, model="tent", epochs=3):
    arguments = [*tiny_arguments(model, town, source), "--trainer.max_epochs", epochs]
    return sfda("fit", *arguments, "--out", folder, *more)


def report_of(folder):
    return json.loads((folder / "collapse_guard.json").read_text())


def predictions(checkpoint, town):
    """Probabilities (N, H, W, C) of the target validation images, by the bare network."""
    samples = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), "val", False, CITYSCAPES19)
    images = np.stack([samples.read(i).image for i in range(len(samples))]).transpose(0, 3, 1, 2)
    method = SourceOnly(network=NETWORK, num_classes=19, source_checkpoint=str(checkpoint)).eval()
    method.initialise_from_source()
    with torch.no_grad():
        logits = method(torch.from_numpy(images).float() / 255)
    return logits.double().softmax(1).permute(0, 2, 3, 1).numpy()


def scores(p):
    """Class coverage and InfoMax of probabilities (..., C)."""
    pixels = p.reshape(-1, p.shape[-1])
    entropy = -(pixels * np.log(pixels)).sum(1).mean()
    mean = pixels.mean(0)
    shares = np.bincount(pixels.argmax(1), minlength=19) / len(pixels)
    return (shares >= 1e-4).mean(), -(mean * np.log(mean)).sum() - entropy


@pytest.mark.medium
@pytest.mark.parametrize("devices", [[], TWO], ids=["one process", "two processes"])
def test_the_values_are_those_of_both_models_predictions(devices, town, source_model, sfda, tmp_path):
    folder = tmp_path / "run"
    assert fit(sfda, town, source_model, folder, "--model.init_args.lr", 0.05, *devices) == 0
    before, after = (predictions(path, town) for path in (source_model, folder / "last.ckpt"))
    report = report_of(folder)
    assert report["images"] == 6
    assert report["source"] == pytest.approx(
        dict(zip(("class_coverage", "infomax"), scores(before), strict=True)), abs=1e-5
    )
    steps = 1 if devices else 2  # an epoch and process
    assert [(row["epoch"], row["step"]) for row in report["epochs"]] == [(e, steps * (e + 1)) for e in range(3)]
    last = report["epochs"][-1]
    assert last["churn"] == pytest.approx((before.argmax(-1) != after.argmax(-1)).mean(), abs=2e-4)
    assert last["class_coverage"] == pytest.approx(scores(after)[0])
    assert last["infomax"] == pytest.approx(scores(after)[1], abs=1e-5)
    logged = (folder / "metrics.csv").read_text()
    assert "target/churn" in logged.splitlines()[0]


@pytest.mark.medium
def test_the_source_model_is_looked_at_before_its_statistics_are_changed(town, good_source, sfda, tmp_path):
    """Self-training re-estimates them before anything else; a collapse by that must show too."""
    assert fit(sfda, town, good_source, tmp_path / "run", model="self_training", epochs=1) == 0
    expected = dict(zip(("class_coverage", "infomax"), scores(predictions(good_source, town)), strict=True))
    assert report_of(tmp_path / "run")["source"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.medium
def test_too_high_a_learning_rate_is_warned_of_once_and_the_usual_one_is_not(town, good_source, sfda, tmp_path, capsys):
    steps = ["--data.init_args.samples_per_epoch", 64]  # 16 an epoch
    assert fit(sfda, town, good_source, tmp_path / "usual", *steps) == 0
    assert "learning rate may be too high" not in capsys.readouterr().err
    assert all(row["warned"] == [] for row in report_of(tmp_path / "usual")["epochs"])
    assert fit(sfda, town, good_source, tmp_path / "high", *steps, "--model.init_args.lr", 1.0) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "learning rate may be too high" in line]
    report = report_of(tmp_path / "high")
    reasons = [(reason, row) for row in report["epochs"] for reason in row["warned"]]
    assert {reason for reason, _ in reasons} >= {"class_coverage"}
    assert len(warned) == len(reasons) == len(dict(reasons))
    row = dict(reasons)["class_coverage"]
    now, before = 100 * row["class_coverage"], 100 * report["source"]["class_coverage"]
    assert (
        f"warning: Tent: {now:.0f} % of the classes are still predicted, {before:.0f} % by the source model "
        f"(epoch {row['epoch']}); its learning rate may be too high, or new BatchNorm statistics do this alone "
        "(compare ada_bn)"
    ) in warned


@pytest.mark.medium
def test_a_resumed_fit_is_compared_with_the_source_model(town, source_model, sfda, tmp_path):
    high = ["--model.init_args.lr", 1.0]
    assert fit(sfda, town, source_model, tmp_path / "whole", *high) == 0
    die([*tiny_arguments("tent", town, source_model), "--trainer.max_epochs", 3, *high], tmp_path / "part")
    assert len(report_of(tmp_path / "part")["epochs"]) == 1
    assert sfda("fit", "--run", tmp_path / "part") == 0
    assert report_of(tmp_path / "part") == report_of(tmp_path / "whole")


@pytest.mark.medium
@pytest.mark.parametrize("model", ["ada_bn", "target_oracle", "source_training"])
def test_other_fits_are_left_alone(model, town, source_model, sfda, tmp_path):
    source = None if model == "source_training" else source_model
    assert fit(sfda, town, source, tmp_path / "run", model=model, epochs=1) == 0
    assert not (tmp_path / "run/collapse_guard.json").exists()
    assert "CollapseGuard" not in torch.load(tmp_path / "run/last.ckpt", weights_only=True)["callbacks"]


@pytest.mark.medium
def test_it_looks_at_few_images_and_a_bad_one_is_left_out(town, source_model, sfda, tmp_path, monkeypatch):
    import shutil

    broken = tmp_path / "town"
    shutil.copytree(town / "cityscapes", broken / "cityscapes")
    sorted((broken / "cityscapes/leftImg8bit/val").rglob("*.png"))[1].write_bytes(b"no image")
    monkeypatch.setattr(guard, "IMAGES", 4)
    assert fit(sfda, broken, source_model, tmp_path / "run", epochs=1) == 0
    report = report_of(tmp_path / "run")
    assert report["images"] == 3
    assert 0 <= report["epochs"][0]["churn"] <= 1


def test_thresholds():
    watch = CollapseGuard()
    watch.start = {"class_coverage": 0.8, "infomax": 1.0}
    fine = {"churn": 0.5, "class_coverage": 0.4, "infomax": 0.5}
    assert watch._reasons(fine) == {}
    for name, value in (("churn", 0.51), ("class_coverage", 0.39), ("infomax", 0.49)):
        assert set(watch._reasons({**fine, name: value})) == {name}


def test_classes_are_remembered_of_evenly_spaced_pixels(monkeypatch):
    probabilities = torch.rand(2, 5, 6, 7)
    classes = probabilities.argmax(1).flatten(1)
    assert torch.equal(guard._some_classes(probabilities).long(), classes)
    monkeypatch.setattr(guard, "PIXELS", 20)
    assert torch.equal(guard._some_classes(probabilities).long(), classes[:, [*range(0, 42, 3)]])
