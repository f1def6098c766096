import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from sfda.errors import UserError
from sfda.methods.info_max import InfoMax
from tiny_runs import NETWORK, tiny_arguments


def batch_of(images, valid):
    return {"target": {"image": images, "valid": valid}}


def test_the_losses_are_those_of_the_formula():
    method = InfoMax(network=NETWORK, num_classes=5).eval()
    images, valid = torch.rand(2, 3, 12, 16), torch.rand(2, 12, 16) < 0.6
    losses = method.compute_losses(batch_of(images, valid))
    with torch.no_grad():
        logits = method(images).double().numpy()
    entropies, total = [], np.zeros(5)
    for b, y, x in zip(*np.nonzero(valid.numpy()), strict=True):
        p = np.exp(logits[b, :, y, x])
        p /= p.sum()
        entropies.append(-sum(q * np.log(q) for q in p))
        total += p
    mean = total / len(entropies)
    assert losses["entropy"].item() == pytest.approx(np.mean(entropies), abs=1e-5)
    assert losses["diversity"].item() == pytest.approx(sum(q * np.log(q) for q in mean), abs=1e-5)


def test_only_padding_gives_zero_with_a_gradient():
    method = InfoMax(network=NETWORK, num_classes=5).train()
    losses = method.compute_losses(batch_of(torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.bool)))
    total = sum(losses.values())
    total.backward()
    assert total.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in method.trainable_parameters()[0]["params"])


def test_the_classifier_stands_still_its_batch_norm_included():
    method = InfoMax(network="smp:DeepLabV3Plus/mobilenet_v2", num_classes=4).train()
    method.set_modes()
    parts = method.network.parts()
    assert not any(module.training for part in parts["classifier"] for module in part.modules())
    norms = [module for module in parts["classifier"].modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert all(module.training for module in parts["backbone"].modules())
    assert method.network.head in parts["classifier"].modules()
    before = [norm.running_mean.clone() for norm in norms]
    method.compute_losses(batch_of(torch.rand(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool)))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


@pytest.mark.parametrize(
    ("network", "layers", "in_train_mode"),
    [
        (NETWORK, ["1", "4"], {"network.backbone.1", "network.backbone.4"}),
        ("tiny_network.build_with_layer_norm", ["before", "after"], set()),
        ("tiny_network.build_with_group_norm", ["1"], set()),
    ],
)
def test_scale_and_shift_of_any_normalisation_may_train_alone(network, layers, in_train_mode):
    method = InfoMax(network=network, num_classes=5, trains="normalisation").train()
    method.set_modes()
    assert {name for name, module in method.network.named_modules() if module.training} == in_train_mode
    names = {id(parameter): name for name, parameter in method.network.named_parameters()}
    trained = [names[id(parameter)] for parameter in method.trainable_parameters()[0]["params"]]
    assert trained == [f"network.backbone.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def test_normalisation_that_is_not_there_cannot_train():
    with pytest.raises(UserError, match="trains backbone"):
        InfoMax(network="tiny_network.build_without_normalisation", num_classes=5, trains="normalisation")


@pytest.mark.medium
def test_a_fit_changes_the_backbone_alone(town, source_model, sfda, tmp_path):
    arguments = [*tiny_arguments("info_max", town, source_model), "--model.init_args.lr", "0.01"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    source, state = (
        torch.load(path, weights_only=True)["state_dict"] for path in (source_model, tmp_path / "run/selected.ckpt")
    )
    changed = {key for key in source if not torch.equal(source[key], state[key])}
    assert changed == {key for key in source if ".backbone." in key}


@pytest.mark.medium
def test_a_fit_raises_mutual_information(town, source_model, sfda, tmp_path):
    import json

    arguments = [*tiny_arguments("info_max", town, source_model), "--model.init_args.optimizer", "adamw"]
    arguments += ["--model.init_args.lr", "0.005", "--trainer.max_epochs", "8"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    guard = json.loads((tmp_path / "run/collapse_guard.json").read_text())
    assert guard["epochs"][-1]["infomax"] > 1.2 * guard["source"]["infomax"]
