import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

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
