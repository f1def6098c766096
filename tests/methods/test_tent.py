import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.errors import UserError
from sfda.methods.tent import Tent
from tiny_runs import NETWORK, tiny_arguments

LAYERS = ("network.network.backbone.1.", "network.network.backbone.4.")


def images_of(town, split):
    samples = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), split, False, CITYSCAPES19)
    stack = np.stack([samples.read(i).image for i in range(len(samples))]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stack).float() / 255


def state_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def entropy_loop(logits, valid):
    """Mean over the real pixels of −Σ p log p, pixel by pixel."""
    terms = []
    for b, y, x in zip(*np.nonzero(valid.numpy()), strict=True):
        z = logits[b, :, y, x].double().numpy()
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        terms.append(-(p * np.log(p)).sum())
    return np.mean(terms)


# --------------------------------------------------------------------- loss and modes


def test_the_loss_is_the_mean_entropy_of_real_pixels_under_batch_statistics():
    method = Tent(network=NETWORK, num_classes=5).train()
    method.set_modes()
    images, valid = torch.rand(3, 3, 16, 16), torch.rand(3, 16, 16) < 0.7
    loss = method.compute_losses({"target": {"image": images, "valid": valid}})
    assert set(loss) == {"entropy"}
    with torch.no_grad():
        logits = method.network(images)
    assert loss["entropy"].item() == pytest.approx(entropy_loop(logits, valid), abs=1e-5)

    # each channel behind the first BN layer has the mean β and the variance γ² of its own batch
    seen = []
    first = method.network.network.backbone[1]
    nn.init.constant_(first.weight, 3.0)
    nn.init.constant_(first.bias, -2.0)
    first.register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    method.network(images)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.full((8,), -2.0), atol=1e-4, rtol=0)
    assert (seen[0].std((0, 2, 3)) > 2.5).all()


def test_nothing_but_batch_norm_is_in_train_mode():
    method = Tent(network=NETWORK, num_classes=5).train()
    method.set_modes()
    training = {name for name, module in method.network.named_modules() if module.training}
    assert training == {"network.backbone.1", "network.backbone.4"}


def test_only_padding_gives_zero_with_a_gradient():
    method = Tent(network=NETWORK, num_classes=5).train()
    valid = torch.zeros(2, 16, 16, dtype=torch.bool)
    loss = method.compute_losses({"target": {"image": torch.rand(2, 3, 16, 16), "valid": valid}})["entropy"]
    loss.backward()
    assert loss.item() == 0
    for parameter in method.trainable_parameters()[0]["params"]:
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_the_defaults_are_adam_with_a_constant_learning_rate():
    method = Tent(network=NETWORK, num_classes=5)
    method._trainer = SimpleNamespace(estimated_stepping_batches=10)
    optimizer = method.configure_optimizers()["optimizer"]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 0.0)
    assert [method.lr_factor(step) for step in (0, 5, 10)] == [1, 1, 1]
    assert [tuple(p.shape) for p in group["params"]] == [(8,), (8,), (16,), (16,)]


def test_a_network_without_normalisation_is_refused():
    with pytest.raises(UserError, match=r"normalisation layers.*info_max, cotta"):
        Tent(network="tiny_network.build_without_normalisation", num_classes=3)


@pytest.mark.parametrize("kind", ["layer_norm", "group_norm"])
def test_other_normalisation_trains_in_eval_mode(kind):
    method = Tent(network=f"tiny_network.build_with_{kind}", num_classes=3).train()
    method.set_modes()
    assert not any(module.training for module in method.network.modules())
    names = {id(parameter): name for name, parameter in method.network.named_parameters()}
    trained = [names[id(parameter)] for parameter in method.trainable_parameters()[0]["params"]]
    layers = {"layer_norm": ["before", "after"], "group_norm": ["1"]}[kind]
    assert trained == [f"network.backbone.{layer}.{part}" for layer in layers for part in ("weight", "bias")]


@pytest.mark.medium
def test_a_stream_on_a_network_without_batch_norm_moves_scale_and_shift(town, sfda, tmp_path):
    network = ["--model.init_args.network", "tiny_network.build_with_layer_norm"]
    assert sfda("fit", *tiny_arguments("source_training", town), *network, "--out", tmp_path / "source") == 0
    source = tmp_path / "source/selected.ckpt"
    row, state = online(sfda, town, source, tmp_path / "run", *network, "--model.init_args.lr", 0.05)
    before = state_of(source)
    changed = {key.split(".")[-2] for key in state if not torch.equal(state[key], before[key])}
    assert changed == {"before", "after"}
    assert row["trained_parameters"] == 32


# --------------------------------------------------------------------- fit


def fit(sfda, town, source_model, folder, *more):
    arguments = [*tiny_arguments("tent", town, source_model), "--model.init_args.lr", "0.01"]
    assert sfda("fit", *arguments, "--out", folder, "--trainer.max_epochs", 3, *more) == 0
    return state_of(folder / "last.ckpt")  # whatever the verdict


@pytest.mark.medium
def test_a_fit_changes_batch_norm_alone_and_leaves_the_target_statistics(town, source_model, sfda, tmp_path):
    source, state = state_of(source_model), fit(sfda, town, source_model, tmp_path / "run")
    changed = {key for key in source if not torch.equal(source[key], state[key])}
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert changed == {layer + kind for layer in LAYERS for kind in kinds}

    # what comes to the first layer does not depend on what was trained: two batches of 8, pooled, are all 16 images
    normalised = (images_of(town, "train") - source["network.mean"]) / source["network.std"]
    maps = nn.functional.conv2d(normalised, source["network.network.backbone.0.weight"], stride=2, padding=1)
    maps = maps.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(state[LAYERS[0] + "running_mean"].double(), maps.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state[LAYERS[0] + "running_var"].double(), maps.var(1), rtol=1e-4, atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("every", [1, 2])
def test_statistics_are_estimated_once_an_epoch_before_validation_and_save(
    every, town, source_model, sfda, tmp_path, monkeypatch
):
    import sfda.methods.tent as tent

    estimated, estimate = [], tent.target_statistics

    def count(method, *arguments):
        estimated.append(method.trainer.global_step)
        return estimate(method, *arguments)

    monkeypatch.setattr(tent, "target_statistics", count)
    fit(sfda, town, source_model, tmp_path / "run", "--trainer.check_val_every_n_epoch", every)
    assert estimated == [2, 4, 6]


@pytest.mark.medium
def test_statistics_are_estimated_anew_after_batches_that_made_no_step(town, source_model, sfda, tmp_path, monkeypatch):
    """A look after every batch under gradient accumulation: the batches move the statistics, the steps do not."""
    import sfda.methods.tent as tent

    estimated, estimate = [], tent.target_statistics

    def count(method, *arguments):
        estimated.append(method.trainer.fit_loop.epoch_loop.total_batch_idx + 1)
        return estimate(method, *arguments)

    monkeypatch.setattr(tent, "target_statistics", count)
    more = ["--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 1]
    fit(sfda, town, source_model, tmp_path / "run", *more)
    assert estimated == [1, 2, 3, 4, 5, 6]


@pytest.mark.medium
def test_a_fit_lowers_the_entropy(town, source_model, sfda, tmp_path):
    """Against the same statistics without any step of Tent."""
    trained = fit(sfda, town, source_model, tmp_path / "trained", "--model.init_args.lr", 0.05)
    still = fit(sfda, town, source_model, tmp_path / "still", "--model.init_args.lr", 0)
    images, entropies = images_of(town, "val"), []
    for state in (trained, still):
        method = Tent(network=NETWORK, num_classes=19).eval()
        method.load_state_dict(state)
        with torch.no_grad():
            entropies.append(entropy_loop(method(images)[:2], torch.ones(2, 32, 64)))
    assert entropies[0] < entropies[1] - 0.05


# --------------------------------------------------------------------- online


def online(sfda, town, source_model, folder, *more):
    arguments = [*tiny_arguments("tent", town, source_model), "--model.init_args.online", "true"]
    assert sfda("validate", *arguments, "--data.init_args.val_batch_size", 2, "--out", folder, *more) == 0
    return json.loads((folder / "result.json").read_text()), state_of(folder / "selected.ckpt")


def stream_by_hand(source_model, batches, lr):
    """Predictions before each step, and the network after all: plain torch."""
    network = Tent(network=NETWORK, num_classes=19, source_checkpoint=str(source_model))
    network.initialise_from_source()
    network = network.network.eval()
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.train()
        layer.momentum = 0.0
    optimizer = torch.optim.Adam([p for layer in layers for p in (layer.weight, layer.bias)], lr=lr)
    predictions = []
    for batch in batches:
        probabilities = network(batch).softmax(1)
        predictions.append(probabilities.argmax(1))
        optimizer.zero_grad()
        (-(probabilities * probabilities.log()).sum(1)).mean().backward()
        optimizer.step()
    return torch.cat(predictions), network


@pytest.mark.medium
def test_online_predicts_each_batch_with_its_own_statistics_before_it_learns_from_it(
    town, source_model, sfda, tmp_path
):
    lr = ["--model.init_args.lr", 0.05, "--model.init_args.warmup_steps", 100]  # a stream does not warm up
    row, state = online(sfda, town, source_model, tmp_path / "run", *lr)
    predictions, network = stream_by_hand(source_model, images_of(town, "val").split(2), 0.05)
    source = state_of(source_model)
    for name, value in network.state_dict().items():
        before = source[f"network.{name}"]
        if "running" in name or name.endswith("tracked"):
            assert torch.equal(state[f"network.{name}"], before), name
        else:
            torch.testing.assert_close(state[f"network.{name}"], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(state[LAYERS[0] + "weight"], source[LAYERS[0] + "weight"])

    samples = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), "val", True, CITYSCAPES19)
    labels = np.stack([samples.read(i).label for i in range(len(samples))])
    ious = []
    for c in range(19):
        hit, label = predictions.numpy() == c, labels == c
        either = (hit | label) & (labels != 255)
        if either.any():
            ious.append((hit & label).sum() / either.sum())
    assert row["target_miou"] == pytest.approx(np.mean(ious), abs=1e-4)
    assert row["trained_parameters"] == 48


@pytest.mark.medium
def test_a_stream_begins_with_the_source_model_whatever_a_checkpoint_holds(town, source_model, sfda, tmp_path):
    row, state = online(sfda, town, source_model, tmp_path / "run", "--model.init_args.lr", 0.05)
    assert not torch.equal(state[LAYERS[0] + "weight"], state_of(source_model)[LAYERS[0] + "weight"])
    assert sfda("validate", "--run", tmp_path / "run", "--out", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again/result.json").read_text())
    assert again["target_miou"] == row["target_miou"]
    assert again["target_nll"] == row["target_nll"]


def test_a_checkpoint_of_a_stream_predicts_with_the_statistics_of_the_images_at_hand():
    method = Tent(network=NETWORK, num_classes=4, online=True).eval()
    images = torch.rand(2, 3, 16, 16)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        got, fixed = method.predict_probabilities(images), method(images).softmax(1)
    assert not any(module.training for module in method.modules())
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    method.set_modes()
    with torch.no_grad():
        torch.testing.assert_close(got, method(images).softmax(1))
    assert (got - fixed).abs().max() > 1e-3


def test_single_images_pass_branches_that_pool_globally():
    method = Tent(network="smp:DeepLabV3Plus/mobilenet_v2", num_classes=4, online=True).eval()
    with torch.inference_mode():
        probabilities = method.predict_probabilities(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 64, 64))


def test_online_with_several_processes_is_refused():
    method = Tent(network=NETWORK, num_classes=3, online=True)
    method._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match="one process"):
        method.setup("validate")


@pytest.mark.medium
def test_an_online_fit_is_refused(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("tent", town, source_model), "--model.init_args.online", "true"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "sfda validate" in capsys.readouterr().err


def test_a_run_that_is_not_online_learns_nothing_from_validation():
    method = Tent(network=NETWORK, num_classes=3).eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.adapt_online(torch.rand(1, 3, 16, 16))
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
