"""Whole runs of DA-Cal, with source images and without."""

import pytest
import torch

from tiny_runs import tiny_arguments

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def arguments_of(model, town, source_model, *more):
    """Runs whose temperatures move."""
    arguments = [*tiny_arguments(model, town, source_model), "--model.init_args.threshold", "0.05"]
    arguments += ["--model.init_args.optimizer", "adamw", "--model.init_args.lr", "0.01"]
    return [*arguments, *(str(argument) for argument in more)]


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal(one, other):
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.medium
@pytest.mark.parametrize("model", ["da_cal", "da_cal_source_free"])
def test_without_a_learning_rate_a_run_is_that_of_the_mean_teacher(model, town, source_model, sfda, tmp_path):
    base = model.replace("da_cal", "mean_teacher")
    epochs = ("--trainer.max_epochs", 2)
    plain = arguments_of(base, town, source_model, "--model.init_args.labels", "soft", *epochs)
    still = arguments_of(model, town, source_model, "--model.init_args.temperature_lr", 0, *epochs)
    moving = arguments_of(model, town, source_model, "--model.init_args.temperature_lr", 0.1, *epochs)
    for name, arguments in (("plain", plain), ("still", still), ("moving", moving)):
        assert sfda("fit", *arguments, "--out", tmp_path / name) == 0
    checkpoints = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("plain", "still", "moving")
    ]
    plain, still, moving = (checkpoint["state_dict"] for checkpoint in checkpoints)
    assert_equal(plain, still)
    assert not torch.equal(plain["network.network.classifier.weight"], moving["network.network.classifier.weight"])
    # optimizer steps are the student's, and BN has moved once in each
    assert {checkpoint["global_step"] for checkpoint in checkpoints} == {4}
    source = state(source_model)["network.network.backbone.1.num_batches_tracked"]
    assert {int(each["network.network.backbone.1.num_batches_tracked"] - source) for each in (plain, moving)} == {4}


@pytest.mark.medium
@pytest.mark.parametrize("model", ["da_cal", "da_cal_source_free"])
def test_resumed_temperatures_are_those_of_one_run(model, town, source_model, sfda, tmp_path):
    arguments = arguments_of(model, town, source_model, "--model.init_args.temperature_lr", 0.01)
    runs = {epochs: tmp_path / str(epochs) for epochs in (1, 3)}
    for epochs, folder in runs.items():
        assert (
            sfda("fit", *arguments, "--trainer.max_epochs", epochs, "--model.init_args.poly_power", 0, "--out", folder)
            == 0
        )
    resumed = [*arguments, "--ckpt_path", runs[1] / "last.ckpt", "--model.init_args.poly_power", 0]
    assert sfda("fit", *resumed, "--trainer.max_epochs", 3, "--out", tmp_path / "resumed") == 0
    one, other = state(runs[3] / "last.ckpt"), state(tmp_path / "resumed/last.ckpt")
    assert one["temperature.last.weight"].abs().max() > 0.01
    assert_equal(one, other)


@pytest.mark.medium
def test_source_model_stands_still(town, source_model, sfda, tmp_path):
    assert sfda("fit", *arguments_of("da_cal_source_free", town, source_model), "--out", tmp_path / "run") == 0
    weights = state(tmp_path / "run/last.ckpt")
    source = {key: value for key, value in state(source_model).items() if key.startswith("network.")}
    kept = {key.replace("source.module", "network", 1): weights[key] for key in weights if key.startswith("source.")}
    assert kept.keys() == source.keys()
    assert_equal(source, kept)
    assert any((value != weights[key]).any() for key, value in source.items())


@pytest.mark.medium
def test_a_run_in_half_precision(town, source_model, sfda, tmp_path):
    arguments = arguments_of("da_cal", town, source_model, "--trainer.precision", "bf16-mixed")
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    weights = state(tmp_path / "run/last.ckpt")
    assert all(value.isfinite().all() for value in weights.values())
    assert weights["temperature.last.weight"].abs().max() > 0
    assert weights["temperature.last.weight"].dtype == torch.float32


@pytest.mark.medium
@pytest.mark.parametrize("model", ["da_cal", "da_cal_source_free"])
def test_two_ranks_hold_the_same(model, town, source_model, sfda, tmp_path, states_of_ranks):
    arguments = arguments_of(model, town, source_model, "--data.init_args.batch_size", 2, "--trainer.devices", 2)
    strategy = "{class_path: lightning.pytorch.strategies.DDPStrategy, "
    strategy += "init_args: {start_method: fork, broadcast_buffers: false}}"
    epochs = ("--trainer.max_epochs", 2)
    assert sfda("fit", *arguments, "--trainer.strategy", strategy, *epochs, "--out", tmp_path / "run") == 0
    one, other = states_of_ranks()
    assert_equal(one, other)
    assert one["temperature.last.weight"].abs().max() > 0
