"""The last word of a fit: better, worse, or nobody can tell; and what becomes of the model."""

import json
import shutil

import pytest
import torch

import sfda.callbacks.fit_verdict as fit_verdict
from sfda.judging.verdict import Verdict
from tiny_runs import die, tiny_arguments

pytestmark = pytest.mark.medium
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


def fit(sfda, town, source, folder, *more, model="tent"):
    return sfda("fit", *tiny_arguments(model, town, source), *more, "--out", folder)


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def equal(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items())


def say(word):
    return lambda *_, **__: Verdict(word, ("so it is said",))


@pytest.mark.parametrize("devices", [[], TWO], ids=["one process", "two processes"])
def test_where_a_model_is_called_worse_the_source_is_kept(
    devices, town, source_model, sfda, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "run"
    monkeypatch.setattr(fit_verdict, "judge_without_labels", say("worse"))
    assert fit(sfda, town, source_model, folder, *devices) == 0
    said = capsys.readouterr().out
    if not devices:  # ranks that are forked write past what is captured
        assert f"{folder}: worse than the source (" in said
        assert said.rstrip().endswith(f"{folder / 'last.ckpt'} is what was trained")
    row, selection = read(folder, "result"), read(folder, "selection")
    assert (row["verdict"], row["selected_by"], row["selected_step"]) == ("worse", "verdict", 0)
    assert (selection["verdict"], selection["source_is_kept"]) == ("worse", True)
    assert selection["reasons"]
    network = {key: value for key, value in state(source_model).items() if key.startswith("network.")}
    kept = {key: value for key, value in state(folder / "selected.ckpt").items() if key in network}
    assert equal(network, kept)
    assert not equal(network, state(folder / "last.ckpt"))
    assert sfda("validate", "--run", folder) == 0
    assert read(folder, "result")["verdict"] == "worse"


@pytest.mark.parametrize("word", ["better", "cannot tell"])
def test_other_verdicts_change_nothing_and_stand_in_the_row(word, town, source_model, sfda, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_verdict, "judge_without_labels", say(word))
    assert fit(sfda, town, source_model, tmp_path / "run") == 0
    row, selection = read(tmp_path / "run", "result"), read(tmp_path / "run", "selection")
    assert (row["verdict"], row["selected_by"]) == (word, "last")
    assert selection == {"verdict": word, "reasons": ["so it is said"], "source_is_kept": False}
    assert equal(state(tmp_path / "run/selected.ckpt"), state(tmp_path / "run/last.ckpt"))


def test_a_method_without_steps_is_left_as_it_is(town, source_model, sfda, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_verdict, "judge_without_labels", say("worse"))
    assert fit(sfda, town, source_model, tmp_path / "run", model="ada_bn") == 0
    row, selection = read(tmp_path / "run", "result"), read(tmp_path / "run", "selection")
    assert (row["verdict"], row["selected_by"], selection["source_is_kept"]) == ("worse", "last", False)


def test_a_resumed_fit_whose_source_model_is_gone_is_not_judged(town, source_model, sfda, tmp_path, capsys):
    source = shutil.copy(source_model, tmp_path / "source.ckpt")
    die([*tiny_arguments("tent", town, source), "--trainer.max_epochs", 2], tmp_path / "run")
    source.unlink()
    assert sfda("fit", "--run", tmp_path / "run") == 0
    assert f"not judged, {source} is not there any more" in capsys.readouterr().out
    assert read(tmp_path / "run", "result")["verdict"] is None


@pytest.mark.parametrize("model", ["target_oracle", "source_training"])
def test_what_reads_labels_of_the_target_or_starts_from_nothing_is_not_judged(
    model, town, source_model, sfda, tmp_path
):
    source = None if model == "source_training" else source_model
    assert fit(sfda, town, source, tmp_path / "run", model=model) == 0
    assert read(tmp_path / "run", "result")["verdict"] is None
