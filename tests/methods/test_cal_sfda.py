"""Cal-SFDA's objective, put together again from loops over pixels; options; labels that a resumed run has lost."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from sfda.errors import UserError
from sfda.methods.cal_sfda import CalSFDA
from sfda.methods.source_training import SourceTraining
from sfda.methods.tent import Tent
from tiny_runs import NETWORK, die, tiny_arguments, watched

OPTIONS = {"network": NETWORK, "num_classes": 19}


class Dice:
    """Draws what it is told."""

    def __init__(self, value):
        self.value = value

    def integers(self, low, high, endpoint):
        assert (low, high, endpoint) == (-3, 3, True)
        return self.value


def softmax(z):
    odds = [math.exp(value - max(z)) for value in z]
    return [odd / sum(odds) for odd in odds]


def objective(logits, labels, valid, weights, rank, ce_weight, rce_weight, nl_weight, eta):
    """All three terms, pixel by pixel as in the specification."""
    ce, weight_sum, reverse, negative, entropies = 0.0, 0.0, [], [], []
    for i, y, x in np.ndindex(*labels.shape):
        p = softmax(logits[i, :, y, x].double().tolist())
        label = int(labels[i, y, x])
        if label != 255:
            ce -= float(weights[label]) * math.log(p[label])
            weight_sum += float(weights[label])
            reverse.append(-sum(q * math.log(1.0 if c == label else 1e-4) for c, q in enumerate(p)))
        if valid[i, y, x]:
            negative.append(-math.log(max(1 - sorted(p, reverse=True)[rank - 1], 1e-5)))
            entropies.append(-sum(q * math.log(q) for q in p))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {
        "sce": ce_weight * ce / weight_sum + rce_weight * mean(reverse),
        "nl": nl_weight * mean(negative),
        "entropy": eta * mean([((h / max(entropies)) ** 2 + 1e-8) ** 2 for h in entropies]),
    }


@pytest.mark.parametrize("draw", [-3, 0, 2])
def test_the_objective_is_the_specified_one(draw):
    weights = {"ce_weight": 0.3, "rce_weight": 0.7, "nl_weight": 0.5, "eta": 2.0}
    method = CalSFDA(**OPTIONS, **weights).eval()
    method.shared_draws = lambda: Dice(draw)
    method._class_weights = torch.linspace(0.2, 1.8, 19)
    generator = torch.Generator().manual_seed(draw + 3)
    images = torch.rand(2, 3, 8, 12, generator=generator)
    labels = torch.randint(0, 19, (2, 8, 12), generator=generator)
    valid = torch.ones(2, 8, 12, dtype=torch.bool)
    valid[0, :, 9:] = False  # padding takes part in nothing
    labels[~valid] = 255
    labels[1, :5] = 255  # unlabelled pixels in the terms that use no label
    batch = {"target": {"image": images, "pseudo_label": labels, "valid": valid}}
    with torch.no_grad():
        losses = method.compute_losses(batch)
        expected = objective(method.network(images), labels, valid, method._class_weights, 19 // 2 + draw, **weights)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-4), name


@pytest.mark.medium
def test_class_weights_are_those_of_the_unscaled_thresholds(town, value_net_model, sfda, tmp_path):
    kept = []
    with watched("on_fit_end", lambda _, method: kept.append((method._class_weights, method.pseudo_labels.report))):
        assert sfda("fit", *tiny_arguments("cal_sfda", town, value_net_model), "--out", tmp_path / "run") == 0
    weights, report = kept[0]
    expected = [1 / min(max(threshold, 0.05), 1) for threshold in report["unscaled_thresholds"]]
    np.testing.assert_allclose(weights.numpy(), np.array(expected) / np.mean(expected), rtol=1e-5)
    assert report["thresholds"] != report["unscaled_thresholds"]
    logged = (tmp_path / "run/metrics.csv").read_text().splitlines()
    column = logged[0].split(",").index("train/effective_classes")
    effective = float(next(line.split(",")[column] for line in logged[1:] if line.split(",")[column]))
    assert effective == pytest.approx(sum(expected) ** 2 / sum(w**2 for w in expected), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        *((CalSFDA, option, -1) for option in ("warmup_epochs", "ce_weight", "rce_weight", "nl_weight", "eta")),
        *((SourceTraining, option, value) for option, value in (("alpha", -1), ("bins", 0), ("temperature", 0))),
        *((Tent, option, -1) for option in ("lr", "weight_decay", "poly_power", "warmup_steps", "momentum")),
        (Tent, "momentum", 1),
    ],
)
def test_options_out_of_range_are_named(method, option, value):
    with pytest.raises(UserError, match=f"model option {option}: "):
        method(**OPTIONS, **{option: value})


def test_a_warm_up_that_could_train_nothing_is_refused():
    options = {"network": "tiny_network.build_without_normalisation", "num_classes": 19}
    with pytest.raises(UserError, match="warmup_epochs 0"):
        CalSFDA(**options)
    CalSFDA(**options, warmup_epochs=0)


def test_the_warm_up_trains_scale_and_shift_of_any_normalisation():
    method = CalSFDA(network="tiny_network.build_with_layer_norm", num_classes=19)
    paused = {id(parameter) for parameter in method.paused_parameters()}
    trained = {name for name, parameter in method.network.network.named_parameters() if id(parameter) not in paused}
    assert trained == {f"backbone.{layer}.{kind}" for layer in ("before", "after") for kind in ("weight", "bias")}


@pytest.mark.medium
def test_without_scaling_there_is_no_value_net_and_any_source_model_will_do(town, source_model, sfda, tmp_path):
    run = tmp_path / "run"
    arguments = [*tiny_arguments("cal_sfda", town, source_model), "--model.init_args.scaling", "none"]
    assert sfda("fit", *arguments, "--out", run) == 0
    assert sfda("validate", "--run", run) == 0
    checkpoint = torch.load(run / "selected.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if not key.startswith("network.")]
    row = json.loads((run / "result.json").read_text())
    assert not [score for score in row if "value_net" in score or "estimated" in score]
    assert not list(run.glob("value_net*"))

    # one of before, which holds a value net that nothing used
    checkpoint["state_dict"]["value_net.estimate.bias"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    method = CalSFDA.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    assert method.value_net is None


@pytest.mark.medium
def test_a_warm_up_without_an_end_is_warned_of(town, value_net_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("cal_sfda", town, value_net_model), "--model.init_args.warmup_epochs"]
    assert sfda("fit", *arguments, "2", "--out", tmp_path / "all") == 0
    assert "the classifier trains in none" in " ".join(capsys.readouterr().err.split())
    assert sfda("fit", *arguments, "0", "--out", tmp_path / "none") == 0
    assert "the classifier trains in none" not in " ".join(capsys.readouterr().err.split())


@pytest.mark.medium
@pytest.mark.parametrize("model", ["source_training", "self_training"])
def test_a_fit_that_diverges_stops_and_selects_nothing(model, town, source_model, sfda, tmp_path, capsys):
    arguments = tiny_arguments(model, town, None if model == "source_training" else source_model)
    arguments += ["--model.init_args.optimizer", "sgd", "--model.init_args.lr", "1e38"]
    assert sfda("fit", *arguments, "--trainer.max_epochs", "3", "--out", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert "NaN or infinite" in message
    assert "--model.init_args.lr" in message
    assert not (tmp_path / "run/selected.ckpt").exists()
    assert not (tmp_path / "run/result.json").exists()


@pytest.mark.medium
def test_a_resumed_run_makes_no_labels_from_another_source_model(town, source_model, sfda, tmp_path, capsys):
    source = tmp_path / "source.ckpt"
    shutil.copy(source_model, source)
    arguments = [*tiny_arguments("self_training", town, source), "--trainer.max_epochs", "2"]
    die(arguments, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/pseudo_labels")
    other = torch.load(source, weights_only=True)
    other["state_dict"] = {key: value + value.is_floating_point() for key, value in other["state_dict"].items()}
    torch.save(other, source)
    assert sfda("fit", "--run", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert "no longer gives the weights" in message
    assert str(source) in message
    shutil.copy(source_model, source)
    assert sfda("fit", "--run", tmp_path / "run") == 0


@pytest.mark.medium
def test_labels_are_those_of_these_images(town, source_model, sfda, tmp_path, capsys):
    """Same root, same names, other images."""
    images = sorted((town / "cityscapes/leftImg8bit/train").rglob("*.png"))
    for folder, chosen in (("day", images[:8]), ("night", images[8:])):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        for number, image in enumerate(chosen):
            shutil.copy(image, tmp_path / "mine" / folder / f"{number}.png")
    arguments = [*tiny_arguments("self_training", town, source_model), "--model.init_args.bn_alpha", "0"]
    target = "--data.init_args.target."
    arguments += [f"{target}layout", "folder", f"{target}root", tmp_path / "mine", f"{target}val_images", "day"]
    die([*arguments, f"{target}train_images", "day", "--trainer.max_epochs", "2"], tmp_path / "run")
    (tmp_path / "run/last.ckpt").unlink()
    capsys.readouterr()
    assert sfda("fit", "--run", tmp_path / "run", f"{target}train_images", "night") == 0
    assert "are remade, they are of another images" in capsys.readouterr().out


@pytest.mark.medium
def test_two_processes_agree_on_re_estimated_statistics(town, value_net_model, sfda, tmp_path, states_of_ranks):
    arguments = [*tiny_arguments("cal_sfda", town, value_net_model), "--trainer.max_epochs", "2"]
    arguments += ["--data.init_args.batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    first, second = states_of_ranks()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    source = torch.load(value_net_model, weights_only=True)["state_dict"]
    assert not torch.equal(first["value_net.norm.running_mean"], source["value_net.norm.running_mean"])


@pytest.mark.medium
def test_one_image_is_too_few_for_statistics(town, source_model, sfda, tmp_path, capsys):
    (tmp_path / "mine/one").mkdir(parents=True)
    shutil.copy(next((town / "cityscapes/leftImg8bit/train").rglob("*.png")), tmp_path / "mine/one")
    target = "--data.init_args.target."
    arguments = [*tiny_arguments("self_training", town, source_model), f"{target}layout", "folder", f"{target}root"]
    arguments += [tmp_path / "mine", f"{target}train_images", "one", f"{target}val_images", "one"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "1 training images are too few" in " ".join(capsys.readouterr().err.split())
