import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.errors import UserError
from sfda.methods.ada_bn import AdaBN
from sfda.networks.batch_norm import keep_lone_values
from tiny_runs import NETWORK, tiny_arguments


def read(town):
    samples = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), "val", True, CITYSCAPES19)
    pairs = [samples.read(i) for i in range(len(samples))]
    images = np.stack([pair.image for pair in pairs]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images).float() / 255, np.stack([pair.label for pair in pairs])


def online(sfda, town, source_model, folder, **options):
    arguments = tiny_arguments("ada_bn", town, source_model)
    for name, value in {"online": "true", "alpha": 1.0, **options}.items():
        arguments += [f"--model.init_args.{name}", value]
    assert sfda("validate", *arguments, "--data.init_args.val_batch_size", 2, "--out", folder) == 0
    return (
        json.loads((folder / "result.json").read_text()),
        torch.load(folder / "selected.ckpt", weights_only=True)["state_dict"],
    )


def stream_by_hand(source_model, images, alpha, forgetting):
    """Predictions of every batch of two before it is learnt from, and the network in the end: plain torch."""
    method = AdaBN(network=NETWORK, num_classes=19, source_checkpoint=str(source_model))
    method.initialise_from_source()
    network = method.network.eval()
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    source = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    followed, predictions = list(source), []
    inputs = []
    for layer in layers:
        layer.register_forward_hook(lambda _m, given, _o: inputs.append(given[0].transpose(0, 1).flatten(1)))
    for batch in images.split(2):
        with torch.no_grad():
            predictions.append(network(batch).argmax(1))
            for layer in layers:
                layer.train()
                layer.momentum = 0.0
            inputs.clear()
            network(batch)
            network.eval()
            for i, layer in enumerate(layers):
                new = inputs[i].mean(1), inputs[i].var(1)
                followed[i] = tuple((1 - forgetting) * followed[i][k] + forgetting * new[k] for k in (0, 1))
                layer.running_mean.copy_((1 - alpha) * source[i][0] + alpha * followed[i][0])
                layer.running_var.copy_((1 - alpha) * source[i][1] + alpha * followed[i][1])
    return torch.cat(predictions).numpy(), network.state_dict()


def mean_iou(predictions, labels):
    ious = []
    for c in range(19):
        either = ((predictions == c) | (labels == c)) & (labels != 255)
        if either.any():
            ious.append(((predictions == c) & (labels == c)).sum() / either.sum())
    return np.mean(ious)


@pytest.mark.medium
@pytest.mark.parametrize(("alpha", "forgetting"), [(1.0, 0.3), (0.25, 1.0)])
def test_statistics_follow_the_stream_and_every_batch_is_predicted_first(
    alpha, forgetting, town, source_model, sfda, tmp_path
):
    row, state = online(sfda, town, source_model, tmp_path / "run", alpha=alpha, forgetting=forgetting)
    images, labels = read(town)
    predictions, expected = stream_by_hand(source_model, images, alpha, forgetting)
    for name, value in expected.items():
        if not name.endswith("tracked"):
            torch.testing.assert_close(state[f"network.{name}"], value, rtol=1e-4, atol=1e-5)
    assert row["target_miou"] == pytest.approx(mean_iou(predictions, labels), abs=1e-4)
    report = json.loads((tmp_path / "run/ada_bn.json").read_text())
    assert report["alpha"] == alpha
    assert [layer["changed"] for layer in report["layers"]] == [True, True]


@pytest.mark.medium
def test_a_stream_begins_with_the_source_statistics_whatever_a_checkpoint_holds(town, source_model, sfda, tmp_path):
    row, state = online(sfda, town, source_model, tmp_path / "run", layers="input")
    source = torch.load(source_model, weights_only=True)["state_dict"]
    changed = {key for key in state if not torch.equal(state[key], source[key])}
    assert changed == {f"network.network.backbone.1.running_{kind}" for kind in ("mean", "var")}
    assert sfda("validate", "--run", tmp_path / "run", "--out", tmp_path / "again") == 0
    assert json.loads((tmp_path / "again/result.json").read_text())["target_nll"] == row["target_nll"]


@pytest.mark.medium
def test_an_online_fit_is_refused(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("ada_bn", town, source_model), "--model.init_args.online", "true"]
    assert sfda("fit", *arguments, "--model.init_args.alpha", 1.0, "--out", tmp_path / "run") == 2
    assert "sfda validate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"online": True, "alpha": "auto"}, "alpha"),
        ({"online": True, "forgetting": 0.0}, "forgetting"),
        ({"forgetting": 1.5}, "forgetting"),
        ({"forgetting": float("nan")}, "forgetting"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AdaBN(network=NETWORK, num_classes=3, **options)


def test_online_with_several_processes_is_refused():
    method = AdaBN(network=NETWORK, num_classes=3, online=True)
    method._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match="one process"):
        method.setup("validate")


def test_a_lone_value_is_normalised_by_the_running_statistics_and_several_by_their_own():
    layer = nn.BatchNorm2d(3)
    layer.running_mean.fill_(2.0)
    layer.running_var.fill_(4.0)
    keep_lone_values(nn.Sequential(layer))
    lone = torch.rand(1, 3, 1, 1)
    torch.testing.assert_close(layer(lone), (lone - 2) / (4 + layer.eps) ** 0.5)
    assert torch.equal(layer.running_mean, torch.full((3,), 2.0))
    layer.train()
    several = torch.rand(2, 3, 1, 1)
    torch.testing.assert_close(layer(several).mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_single_images_pass_branches_that_pool_globally_and_leave_those_as_they_are():
    method = AdaBN(network="smp:DeepLabV3Plus/mobilenet_v2", num_classes=4, online=True).eval()
    method._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    method.on_validation_start()
    before = {key: value.clone() for key, value in method.network.state_dict().items()}
    with torch.inference_mode():
        method.adapt_online(torch.rand(1, 3, 64, 64))
    after = method.network.state_dict()
    still = {key for key in after if key.endswith("running_mean") and torch.equal(after[key], before[key])}
    assert len(still) == 1
    assert "aspp" in still.pop()
