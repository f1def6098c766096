import json

import numpy as np
import pytest
import torch

from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.methods.ada_bn import ALPHAS
from tiny_runs import tiny_arguments

pytestmark = pytest.mark.medium


def fit(sfda, town, source_model, folder, *more):
    arguments = tiny_arguments("ada_bn", town, source_model)
    assert sfda("fit", *arguments, "--data.init_args.samples_per_epoch", 16, "--out", folder, *more) == 0
    state = torch.load(folder / "selected.ckpt", weights_only=True)["state_dict"]
    return state, json.loads((folder / "ada_bn.json").read_text())


def first_layer_statistics(town, state):
    """Mean and unbiased variance of the first convolution's output over all target images, by hand."""
    images = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), "train", False, CITYSCAPES19)
    stack = np.stack([images.read(i).image for i in range(len(images))]).transpose(0, 3, 1, 2) / 255
    normalised = (torch.tensor(stack).float() - state["network.mean"]) / state["network.std"]
    maps = torch.nn.functional.conv2d(normalised, state["network.network.backbone.0.weight"], stride=2, padding=1)
    maps = maps.double().transpose(0, 1).flatten(1)
    return maps.mean(1), maps.var(1)


def test_alpha_mixes_source_and_target_statistics(town, source_model, sfda, tmp_path):
    source = torch.load(source_model, weights_only=True)["state_dict"]
    state, report = fit(sfda, town, source_model, tmp_path / "run", "--model.init_args.alpha", 0.25)
    mean, variance = first_layer_statistics(town, source)
    layer = "network.network.backbone.1.running_"
    torch.testing.assert_close(
        state[f"{layer}mean"].double(), 0.75 * source[f"{layer}mean"] + 0.25 * mean, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        state[f"{layer}var"].double(), 0.75 * source[f"{layer}var"] + 0.25 * variance, rtol=1e-4, atol=1e-5
    )
    assert report["alpha"] == 0.25
    assert report["scores"] == []
    assert (tmp_path / "run/ada_bn_layers.png").stat().st_size > 0
    changed = {key for key in state if not torch.equal(state[key], source[key])}
    assert changed == {f"network.network.backbone.{i}.running_{kind}" for i in (1, 4) for kind in ("mean", "var")}


def test_alpha_zero_is_the_source_model(town, source_model, sfda, tmp_path):
    source = torch.load(source_model, weights_only=True)["state_dict"]
    state, _ = fit(sfda, town, source_model, tmp_path / "run", "--model.init_args.alpha", 0)
    assert all(torch.equal(state[key], source[key]) for key in source)


def test_input_layers_only(town, source_model, sfda, tmp_path, capsys):
    source = torch.load(source_model, weights_only=True)["state_dict"]
    state, report = fit(
        sfda, town, source_model, tmp_path / "run", "--model.init_args.alpha", 1, "--model.init_args.layers", "input"
    )
    changed = {key for key in state if not torch.equal(state[key], source[key])}
    assert changed == {f"network.network.backbone.1.running_{kind}" for kind in ("mean", "var")}
    assert [layer["changed"] for layer in report["layers"]] == [True, False]
    assert (report["reached_layers"], report["normalisation_layers"]) == (1, 2)
    assert "AdaBN reaches 1 of 2 normalisation layers (backbone.1)" in capsys.readouterr().out


def test_auto_takes_the_largest_rank_sum_and_the_smaller_alpha_of_equals(town, source_model, sfda, tmp_path):
    from scipy.stats import rankdata

    state, report = fit(sfda, town, source_model, tmp_path / "run")
    scores = report["scores"]
    assert [score["alpha"] for score in scores] == list(ALPHAS)
    sums = sum(rankdata([score[name] for score in scores]) for name in ("agreement", "infomax"))
    assert report["alpha"] == ALPHAS[int(np.argmax(sums))]  # argmax: the first, which is the smallest
    fixed, _ = fit(sfda, town, source_model, tmp_path / "fixed", "--model.init_args.alpha", report["alpha"])
    assert all(torch.equal(state[key], fixed[key]) for key in state)


def test_a_network_without_batch_norm_is_refused(town, source_model, sfda, tmp_path, capsys):
    arguments = tiny_arguments("ada_bn", town, source_model)
    assert sfda("fit", *arguments, "--model.init_args.network", "torch.nn.Identity", "--out", tmp_path) == 2
    assert "Identity" in capsys.readouterr().err
