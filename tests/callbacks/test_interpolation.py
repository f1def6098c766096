"""What a fit keeps lies on the way from the network that training began with to the one that was trained."""

import json
import shutil

import pytest
import torch

import sfda.callbacks.fit_verdict as fit_verdict
from sfda.errors import UserError
from sfda.judging.verdict import Verdict
from sfda.methods.cotta import CoTTA
from sfda.methods.self_training import SelfTraining
from sfda.methods.tent import Tent
from tiny_runs import NETWORK, die, tiny_arguments, watched

pytestmark = pytest.mark.medium
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
LR = ["--model.init_args.lr", "0.05", "--trainer.max_epochs", "2"]
BATCH = ["--data.init_args.batch_size", "2"]


@pytest.fixture(autouse=True)
def nothing_is_worse(monkeypatch):
    monkeypatch.setattr(
        fit_verdict, "judge_without_labels", lambda *_, **__: Verdict("cannot tell", ("so it is said",))
    )


def fit(sfda, town, source, folder, share, *more, model="tent"):
    arguments = [*tiny_arguments(model, town, source), *LR, "--model.init_args.share", share, *more]
    return sfda("fit", *arguments, "--out", folder)


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def read(folder, name="selection"):
    return json.loads((folder / f"{name}.json").read_text())


def networks(path):
    return {key: value for key, value in state(path).items() if key.startswith("network.")}


def assert_on_the_way(start, trained, kept, share):
    for key, value in trained.items():
        expected = (1 - share) * start[key] + share * value if value.is_floating_point() else value
        torch.testing.assert_close(kept[key], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [[], [*TWO, *BATCH]], ids=["one process", "two_processes"])
@pytest.mark.parametrize("model", ["tent", "cotta"])
def test_selected_is_on_the_way_and_last_is_what_was_trained(model, devices, town, source_model, sfda, tmp_path):
    folder = tmp_path / "run"
    assert fit(sfda, town, source_model, folder, 0.25, *devices, model=model) == 0
    start, trained, kept = (networks(path) for path in (source_model, folder / "last.ckpt", folder / "selected.ckpt"))
    assert not torch.equal(start["network.network.backbone.1.weight"], trained["network.network.backbone.1.weight"])
    assert_on_the_way(start, trained, kept, 0.25)
    assert read(folder)["share"] == 0.25
    assert sfda("validate", "--run", folder) == 0
    whole = tmp_path / "whole"
    assert fit(sfda, town, source_model, whole, 1.0, *devices, model=model) == 0
    for key, value in networks(whole / "last.ckpt").items():
        assert torch.equal(value, trained[key])  # a share changes no training
    assert "share" not in read(whole)
    assert sfda("validate", "--run", whole) == 0
    scores = [read(run, "result")["target_nll"] for run in (folder, whole)]
    assert scores[0] != scores[1]


def test_the_start_is_the_network_that_training_began_with(town, source_model, sfda, tmp_path):
    """Self-training begins with the target's statistics."""
    began = {}

    def keep(trainer, method):
        began.update({f"network.{key}": value.clone() for key, value in method.network.state_dict().items()})

    with watched("on_train_start", keep):
        assert fit(sfda, town, source_model, tmp_path / "run", 0.5, model="self_training") == 0
    statistics = "network.network.backbone.1.running_mean"
    assert not torch.equal(began[statistics], state(source_model)[statistics])
    assert_on_the_way(began, networks(tmp_path / "run/last.ckpt"), networks(tmp_path / "run/selected.ckpt"), 0.5)


def test_share_0_is_the_start_and_is_not_judged_better(town, source_model, sfda, tmp_path):
    assert fit(sfda, town, source_model, tmp_path / "run", 0, model="info_max") == 0
    start, kept = networks(source_model), networks(tmp_path / "run/selected.ckpt")
    for key, value in start.items():
        assert torch.equal(value, kept[key]) or "num_batches" in key


@pytest.mark.parametrize("share", [0.5, "auto"])
def test_a_resumed_fit_keeps_the_same(share, town, source_model, sfda, tmp_path):
    """Also where the source model is gone by then."""
    source = shutil.copy(source_model, tmp_path / "source.ckpt")
    assert fit(sfda, town, source, tmp_path / "whole", share, model="self_training") == 0
    arguments = [*tiny_arguments("self_training", town, source), *LR, "--model.init_args.share", share]
    die(arguments, tmp_path / "part")
    source.unlink()
    assert sfda("fit", "--run", tmp_path / "part") == 0
    one, other = (networks(tmp_path / run / "selected.ckpt") for run in ("whole", "part"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert read(tmp_path / "whole")["share"] == read(tmp_path / "part")["share"]


def test_a_fit_that_was_begun_with_share_1_cannot_go_on_with_another(town, source_model, sfda, tmp_path, capsys):
    die([*tiny_arguments("tent", town, source_model), *LR], tmp_path / "part")
    assert sfda("fit", "--run", tmp_path / "part", "--model.init_args.share", 0.5) == 2
    assert "does not hold the network that its training began with" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("devices", [[], [*TWO, *BATCH]], ids=["one process", "two_processes"])
def test_auto_writes_what_it_chose_from(devices, town, source_model, sfda, tmp_path):
    folder = tmp_path / "run"
    selector = ["--trainer.callbacks", "[{class_path: sfda.callbacks.select_by_entropy.SelectByEntropy}]"]
    assert fit(sfda, town, source_model, folder, "auto", *devices, *selector) == 0
    report = read(folder)
    assert [row["share"] for row in report["shares"]] == [0, 0.25, 0.5, 0.75, 1]
    assert report["share"] == max(report["shares"], key=lambda row: row["score"])["share"]
    for row in report["shares"]:  # Tent trains on InfoMax
        assert row["score"] == pytest.approx(row["agreement"])
    assert report["selected_by"] == "entropy"
    assert report["verdict"]
    trained = networks(
        folder / "candidates/entropy" / f"epoch={report['selected']['epoch']}-step={report['selected']['step']}.ckpt"
    )
    assert_on_the_way(networks(source_model), trained, networks(folder / "selected.ckpt"), report["share"])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_of_0_and_1_is_refused(share, town, source_model, sfda, tmp_path, capsys):
    assert fit(sfda, town, source_model, tmp_path / "run", share) == 2
    assert f"model option share: auto, or a number from 0 to 1, not {share}" in capsys.readouterr().err
    assert not (tmp_path / "run/last.ckpt").exists()


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("source_training", [], "there is none: give --model.init_args.source_checkpoint"),
        ("tent", ["--model.init_args.share", "half"], "share"),
    ],
)
def test_what_has_no_way_back_is_refused_before_the_fit(
    model, more, message, town, source_model, sfda, tmp_path, capsys
):
    source = None if model == "source_training" else source_model
    assert fit(sfda, town, source, tmp_path / "run", "0.5", *more, model=model) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/last.ckpt").exists()


def test_auto_needs_images_of_the_target(town, source_model, sfda, tmp_path, capsys):
    assert fit(sfda, town, source_model, tmp_path / "run", "auto", model="source_training") == 2
    assert "SourceTraining reads none: give a number from 0 to 1" in " ".join(capsys.readouterr().err.split())


def test_a_value_net_and_a_stream_take_no_share(town, source_model, sfda, tmp_path, capsys):
    assert fit(sfda, town, source_model, tmp_path / "run", 0.5, model="value_net_training") == 2
    assert "the segmenter does not train here" in capsys.readouterr().err
    arguments = [*tiny_arguments("tent", town, source_model), "--model.init_args.online", "true"]
    assert sfda("validate", *arguments, "--model.init_args.share", 0.5, "--out", tmp_path / "stream") == 2
    assert "a stream has no end to go back from" in capsys.readouterr().err


def test_from_python_too_bad_shares_are_refused():
    for share, method in ((2.0, Tent), (float("nan"), CoTTA), (-1.0, SelfTraining)):
        with pytest.raises(UserError, match="model option share"):
            method(share=share, network=NETWORK, num_classes=5)
