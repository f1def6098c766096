"""Self-training and Cal-SFDA: labels, warm-up, interruption, two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from sfda.cli.main import main
from sfda.data.images import read_label_values
from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.methods.cal_sfda import CalSFDA
from sfda.methods.self_training import SelfTraining
from sfda.methods.value_net_training import ValueNetTraining
from tiny_runs import Death, die, tiny_arguments, watched

pytestmark = pytest.mark.medium
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def labels(run: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_label_values(path) for path in sorted((run / "pseudo_labels/labels").glob("*.png"))}


def manifest(run: Path) -> dict:
    return json.loads((run / "pseudo_labels/manifest.json").read_text())


def assert_equal_labels(one: Path, other: Path) -> None:
    first, second = labels(one), labels(other)
    assert first.keys() == second.keys()
    for name, label in first.items():
        assert np.array_equal(label, second[name]), name


def affine_names(module: torch.nn.Module) -> set[str]:
    return {
        f"{name}.{part}"
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        for part in ("weight", "bias")
    }


def test_labels_follow_the_class_balanced_rule_of_the_source_model(town, source_model, sfda, tmp_path):
    """Without BN re-estimation, computed again by sorting, from the images as they are."""
    arguments = [*tiny_arguments("self_training", town, source_model), "--model.init_args.bn_alpha", "0"]
    arguments += ["--model.init_args.class_fraction", "0.3", "--model.init_args.image_fraction", "0.2"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0

    method = SelfTraining.load_from_checkpoint(tmp_path / "run/last.ckpt", weights_only=True).eval()
    method.network.load_state_dict({k.removeprefix("network."): v for k, v in state(source_model).items()})
    domain = Domain(layout="cityscapes", root=str(town / "cityscapes"))
    samples = SegmentationSet(domain, "train", with_labels=False, class_set=CITYSCAPES19)
    predicted, bins = {}, {}
    with torch.no_grad():
        for index in range(len(samples)):
            sample = samples.read(index)
            image = torch.from_numpy(sample.image.transpose(2, 0, 1)).float()[None] / 255
            p = method.network(image).softmax(1)[0].numpy()
            predicted[sample.name] = p.argmax(0)
            bins[sample.name] = np.minimum(np.floor(p.max(0).astype(np.float64) * 2048), 2047).astype(int)

    def threshold(values: np.ndarray, fraction: float) -> int:
        return np.sort(values)[::-1][int(np.ceil(fraction * len(values) - 1e-9)) - 1]

    all_predicted = np.concatenate([p.ravel() for p in predicted.values()])
    all_bins = np.concatenate([b.ravel() for b in bins.values()])
    per_class = {c: threshold(all_bins[all_predicted == c], 0.3) for c in np.unique(all_predicted)}
    written = labels(tmp_path / "run")
    assert written.keys() == predicted.keys()
    different = 0
    for name, label in written.items():
        least = np.vectorize(per_class.get)(predicted[name])
        keep = (bins[name] >= least) | (bins[name] >= threshold(bins[name].ravel(), 0.2))
        different += int((label != np.where(keep, predicted[name], 255)).sum())
    # A pixel on the edge of a bin may fall on either side: batches of other sizes round differently.
    assert different <= 1e-3 * all_bins.size
    assert 0.2 <= manifest(tmp_path / "run")["report"]["coverage"] < 0.7


def test_fractions_and_learning_rate_follow_the_round(town, source_model):
    options = {"network": "tiny_network.build", "num_classes": 19, "poly_power": 0.0}
    first, third = SelfTraining(**options), SelfTraining(round=2, **options)
    assert (first.class_fraction, first.image_fraction) == (0.15, 0.10)
    assert third.class_fraction == pytest.approx(0.25)
    assert third.image_fraction == pytest.approx(0.20)
    assert (first.lr_factor(0), third.lr_factor(0)) == (1, pytest.approx(0.5))


@pytest.mark.parametrize("train_backbone", [False, True])
def test_first_batch_norm_alone_then_the_classifier(train_backbone, town, value_net_model, sfda, tmp_path):
    kept: list[dict[str, torch.Tensor]] = []

    def keep(_, method):
        kept.append({key: value.clone() for key, value in method.state_dict().items()})

    arguments = [*tiny_arguments("cal_sfda", town, value_net_model), "--trainer.max_epochs", "3"]
    arguments += ["--model.init_args.lr", "0.1", "--model.init_args.train_backbone", str(train_backbone)]
    with watched("on_train_start", keep), watched("on_train_epoch_end", keep):
        assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    start, warm, second, third = kept

    def moved(one, other):
        return {key for key in one if not torch.equal(one[key], other[key])}

    method = CalSFDA.load_from_checkpoint(tmp_path / "run/last.ckpt", weights_only=True)
    affine = affine_names(method)
    statistics = {key for key in start if "running_" in key or "num_batches" in key}
    in_warmup = moved(start, warm)
    assert in_warmup - statistics == {name for name in affine if name.startswith("network.")}
    afterwards = moved(warm, second) | moved(second, third)
    classifier = {key for key in start if key.startswith("network.network.classifier")}
    backbone = {key for key in start if key.startswith("network.network.backbone")}
    assert classifier <= afterwards
    assert (afterwards & backbone == set()) is not train_backbone
    assert not any(key.startswith("value_net") for key in in_warmup | afterwards)


def test_scaling_by_the_estimated_error_lowers_the_thresholds(town, value_net_model, sfda, tmp_path):
    arguments = tiny_arguments("cal_sfda", town, value_net_model)
    assert sfda("fit", *arguments, "--out", tmp_path / "scaled") == 0
    assert sfda("fit", *arguments, "--model.init_args.scaling", "none", "--out", tmp_path / "plain") == 0
    scaled, plain = (manifest(tmp_path / name)["report"] for name in ("scaled", "plain"))
    assert scaled["unscaled_thresholds"] == plain["unscaled_thresholds"] == plain["thresholds"]
    predicted = [c for c, share in enumerate(plain["realised_fraction"]) if share > 0]
    assert all(scaled["thresholds"][c] < plain["thresholds"][c] for c in predicted)


def test_statistics_of_both_networks_become_those_of_the_target(town, value_net_model, sfda, tmp_path, monkeypatch):
    """Before labelling by default, behind it in the official order: then the labels are the source model's."""
    seen = {}

    def watch(self, store):
        seen[self.official_order] = {key: value.clone() for key, value in self.state_dict().items()}
        return SelfTraining.make_labels(self, store)

    monkeypatch.setattr(CalSFDA, "make_labels", watch)
    for official in (False, True):
        arguments = [*tiny_arguments("cal_sfda", town, value_net_model), "--model.init_args.official_order"]
        assert sfda("fit", *arguments, str(official), "--out", tmp_path / str(official)) == 0
    source = ValueNetTraining.load_from_checkpoint(value_net_model, weights_only=True).state_dict()
    statistics = [key for key in source if key.endswith(("running_mean", "running_var"))]
    assert any(key.startswith("value_net") for key in statistics)
    for key in statistics:
        assert torch.equal(seen[True][key], source[key])
        assert not torch.equal(seen[False][key], source[key])


@pytest.mark.parametrize("dies_after", [0, 1, 17, 20])
def test_killed_while_labelling_it_goes_on_to_the_same_weights(
    dies_after, town, value_net_model, sfda, tmp_path, monkeypatch
):
    """16 images: 16 temporaries, then 16 labels."""
    arguments = [*tiny_arguments("cal_sfda", town, value_net_model), "--trainer.max_epochs", "2"]
    assert sfda("fit", *arguments, "--out", tmp_path / "whole") == 0
    import sfda.pseudo_labels.store as store

    written, write = [], store.write_whole

    def dies(path, data):
        if len(written) == dies_after:
            raise Death
        written.append(path)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_whole", dies)
        with pytest.raises(Death):
            main(["fit", *arguments, "--out", str(tmp_path / "part")])
    assert not (tmp_path / "part/last.ckpt").exists()
    assert sfda("fit", "--run", tmp_path / "part") == 0
    assert_equal_labels(tmp_path / "whole", tmp_path / "part")
    one, other = state(tmp_path / "whole/last.ckpt"), state(tmp_path / "part/last.ckpt")
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not list((tmp_path / "part/pseudo_labels").rglob("*.npz"))


def test_labels_made_with_other_options_are_remade(town, source_model, sfda, tmp_path, capsys):
    """An interrupted run whose labels are there, gone on with in other ways."""
    arguments = tiny_arguments("self_training", town, source_model)
    die(arguments, tmp_path / "run", epoch=0)
    first = labels(tmp_path / "run")
    capsys.readouterr()
    assert sfda("fit", "--run", tmp_path / "run", "--model.init_args.class_fraction", "0.5") == 0
    assert "are remade, they are of another class_fraction" in capsys.readouterr().out
    second = labels(tmp_path / "run")
    assert sum((label != 255).sum() for label in second.values()) > sum(
        (label != 255).sum() for label in first.values()
    )


def test_two_processes_make_the_same_labels_and_stay_equal(town, value_net_model, sfda, tmp_path, states_of_ranks):
    """After the warm-up boundary too. BN statistics are left alone: they would depend on who shares a batch."""
    arguments = [*tiny_arguments("cal_sfda", town, value_net_model), "--trainer.max_epochs", "3"]
    arguments += ["--model.init_args.bn_alpha", "0", "--model.init_args.lr", "0.05", "--data.init_args.batch_size", "2"]
    assert sfda("fit", *arguments, *TWO, "--out", tmp_path / "two") == 0
    first, second = states_of_ranks()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert sfda("fit", *arguments, "--out", tmp_path / "one") == 0
    one, two = manifest(tmp_path / "one")["report"], manifest(tmp_path / "two")["report"]
    np.testing.assert_allclose(one["thresholds"], two["thresholds"], atol=1e-3)  # one bin
    same = [np.mean(label == labels(tmp_path / "two")[name]) for name, label in labels(tmp_path / "one").items()]
    assert np.mean(same) > 0.999


def test_estimated_error_stands_beside_entropy(town, value_net_model, sfda, tmp_path):
    assert sfda("fit", *tiny_arguments("cal_sfda", town, value_net_model), "--out", tmp_path / "run") == 0
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"target/estimated_ece", "target/entropy"} <= set(header)
    assert not any("pearson" in column or "miou" in column for column in header)  # no label was there to read
    assert sfda("validate", "--run", tmp_path / "run") == 0
    report = json.loads((tmp_path / "run/value_net.json").read_text())
    assert report["target"]["true_ece"] > 0
    row = json.loads((tmp_path / "run/result.json").read_text())
    assert row["target_value_net_spearman"] == pytest.approx(report["target"]["spearman"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("class_fraction", "1.5", "class_fraction"), ("bn_alpha", "-1", "bn_alpha"), ("round", "-1", "round")],
)
def test_wrong_options_are_named(option, value, message, town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("self_training", town, source_model), f"--model.init_args.{option}", value]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err


def test_without_a_value_net_there_is_a_way(town, source_model, sfda, tmp_path, capsys):
    assert sfda("fit", *tiny_arguments("cal_sfda", town, source_model), "--out", tmp_path / "run") == 2
    assert "value_net_training" in capsys.readouterr().err
