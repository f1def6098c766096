import json

import pytest
import torch

from sfda.callbacks.select_by_ece import SelectByECE
from sfda.callbacks.select_by_entropy import SelectByEntropy
from sfda.errors import UserError
from tiny_runs import die, tiny_arguments

ECE = "[{class_path: sfda.callbacks.select_by_ece.SelectByECE, init_args: {start_after: START, keep: -1}}]"
ENTROPY = "[{class_path: sfda.callbacks.select_by_entropy.SelectByEntropy}]"


def arguments_of(town, callbacks, model="source_training", source=None):
    arguments = [*tiny_arguments(model, town, source), "--trainer.callbacks", callbacks, "--trainer.max_epochs", 6]
    return [*arguments, *(["--model.init_args.lr", "0.05"] if model == "source_training" else [])]


def fit(sfda, town, folder, callbacks, *more, **model):
    return sfda("fit", *arguments_of(town, callbacks, **model), "--out", folder, *more)


def logged(folder, key):
    """A score of every epoch, as the logger wrote it."""
    import csv

    with (folder / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.medium
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_the_smallest_ece_of_the_last_part_is_kept(start, town, sfda, tmp_path):
    folder = tmp_path / "run"
    assert fit(sfda, town, folder, ECE.replace("START", str(start))) == 0
    values = logged(folder, "source/ece")
    assert len(values) == 6
    first = int(6 * start)
    best = min(range(first, 6), key=values.__getitem__)
    report = json.loads((folder / "selection.json").read_text())
    assert [candidate["value"] for candidate in report["candidates"]] == pytest.approx(values)
    assert [candidate["eligible"] for candidate in report["candidates"]] == [epoch >= first for epoch in range(6)]
    assert (report["monitor"], report["mode"], report["selected"]["epoch"]) == ("source/ece", "min", best)
    assert report["selected"]["source/miou"] == pytest.approx(logged(folder, "source/miou")[best])
    assert f"{6 - first} candidates" in report["why"]

    row = json.loads((folder / "result.json").read_text())
    assert (row["selected_by"], row["selected_step"]) == ("ece", 2 * (best + 1))
    candidates = {path.name for path in (folder / "candidates/ece").iterdir()}
    assert candidates == {f"epoch={epoch}-step={2 * epoch + 2}.ckpt" for epoch in range(first, 6)}
    kept = torch.load(folder / "selected.ckpt", weights_only=True)
    chosen = torch.load(folder / f"candidates/ece/epoch={best}-step={2 * best + 2}.ckpt", weights_only=True)
    assert all(torch.equal(value, chosen["state_dict"][key]) for key, value in kept["state_dict"].items())
    assert sfda("validate", "--run", folder) == 0
    assert json.loads((folder / "result.json").read_text())["source_ece"] == pytest.approx(values[best], abs=1e-6)


@pytest.mark.medium
def test_ece_on_target_is_refused_where_its_labels_may_not_be_read(town, source_model, sfda, tmp_path, capsys):
    callbacks = ECE.replace("START", "0.5")
    assert fit(sfda, town, tmp_path / "run", callbacks, model="ada_bn", source=source_model) == 2
    error = capsys.readouterr().err
    assert "needs labels of the target validation images, which AdaBN does not read" in error
    assert not (tmp_path / "run/last.ckpt").exists()


@pytest.mark.medium
def test_a_monitor_that_does_not_exist_is_refused_before_training(town, sfda, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SelectByEntropy, "score", "entropie")
    assert fit(sfda, town, tmp_path / "run", ENTROPY) == 2
    assert "'entropie', which is not among the scores" in capsys.readouterr().err
    assert not (tmp_path / "run/last.ckpt").exists()


@pytest.mark.medium
def test_a_fit_that_validates_nothing_is_refused(town, sfda, tmp_path, capsys):
    assert fit(sfda, town, tmp_path / "run", ENTROPY, "--trainer.limit_val_batches", 0) == 2
    assert "validates nothing" in capsys.readouterr().err


@pytest.mark.medium
def test_entropy_needs_no_label(town, source_model, sfda, tmp_path):
    """Labels change nothing in what entropy chooses."""
    folder = tmp_path / "run"
    assert fit(sfda, town, folder, ENTROPY) == 0
    values = logged(folder, "source/entropy")
    report = json.loads((folder / "selection.json").read_text())
    assert report["selected"]["epoch"] == min(range(6), key=values.__getitem__)
    assert json.loads((folder / "result.json").read_text())["selected_by"] == "entropy"
    assert len(list((folder / "candidates/entropy").iterdir())) == 1


@pytest.mark.medium
def test_a_resumed_fit_remembers_its_candidates(town, sfda, tmp_path):
    callbacks = ECE.replace("START", "0.0")
    assert fit(sfda, town, tmp_path / "whole", callbacks) == 0
    die(arguments_of(town, callbacks), tmp_path / "part", epoch=4)
    moved = tmp_path / "moved"  # the folder has another name by now
    (tmp_path / "part").rename(moved)
    assert sfda("fit", "--run", moved) == 0
    kept = torch.load(moved / "selected.ckpt", weights_only=True)
    assert kept["global_step"] == json.loads((moved / "result.json").read_text())["selected_step"]
    whole, part = (json.loads((tmp_path / name / "selection.json").read_text()) for name in ("whole", "moved"))
    assert whole == part


@pytest.mark.parametrize("options", [{"start_after": 1.0}, {"start_after": -0.1}, {"keep": 0}])
def test_wrong_options_are_refused(options):
    for selector in (SelectByECE, SelectByEntropy):
        with pytest.raises(UserError):
            selector(**options)
