"""Every label-free selector, side by side in one fit."""

import csv
import importlib
import json
import pkgutil

import pytest
import torch

import sfda.callbacks
from sfda.callbacks.rank_sum import RankSum, beaten
from sfda.callbacks.selection import Selector
from sfda.judging.verdict import Verdict
from tiny_runs import die, tiny_arguments

EPOCHS = 5
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


def selector_classes():
    """Those of the package that need no label."""
    names = [module.name for module in pkgutil.iter_modules(sfda.callbacks.__path__) if "select_by" in module.name]
    modules = [importlib.import_module(f"sfda.callbacks.{name}") for name in names if name != "select_by_ece"]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return [each for each in found if issubclass(each, Selector) and "select_by" in each.__module__]


SELECTORS = selector_classes()
ALL = [word for each in SELECTORS for word in ("--trainer.callbacks+", f"{each.__module__}.{each.__qualname__}")]


def arguments(town, source, model="tent", lr=0.02):
    return [
        *tiny_arguments(model, town, source),
        *ALL,
        "--trainer.max_epochs",
        EPOCHS,
        "--model.init_args.lr",
        lr,
    ]


def logged(folder, score):
    rows = []
    for path in sorted(folder.glob("metrics*.csv")):
        with path.open() as file:
            rows += list(csv.DictReader(file))
    return [float(row[f"target/{score}"]) for row in rows if row.get(f"target/{score}")]


def reports(folder):
    first = json.loads((folder / "selection.json").read_text())
    return {report["selected_by"]: report for report in (first, *first["others"])}


@pytest.mark.medium
@pytest.mark.parametrize("devices", [[], TWO], ids=["one process", "two processes"])
def test_all_selectors_work_side_by_side_and_each_keeps_its_checkpoint(
    devices, town, source_model, sfda, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    monkeypatch.setattr("sfda.callbacks.fit_verdict.judge_without_labels", lambda *_, **__: Verdict("cannot tell", ()))
    assert sfda("fit", *arguments(town, source_model), *devices, "--out", folder) == 0
    found = reports(folder)
    assert list(found) == [each.score for each in SELECTORS]
    for each in SELECTORS:
        report = found[each.score]
        if issubclass(each, RankSum):
            continue
        values = logged(folder, each.score)
        assert len(values) == EPOCHS
        assert [candidate["value"] for candidate in report["candidates"]] == pytest.approx(values, rel=1e-5)
        best = (min if each.mode_of_score == "min" else max)(range(EPOCHS), key=values.__getitem__)
        assert report["selected"]["epoch"] == best
        kept = [path.name for path in (folder / "candidates" / each.score).iterdir()]
        assert kept == [f"epoch={best}-step={report['selected']['step']}.ckpt"]
    row, first = json.loads((folder / "result.json").read_text()), found[SELECTORS[0].score]
    assert (row["selected_by"], row["selected_step"]) == (SELECTORS[0].score, first["selected"]["step"])


@pytest.mark.medium
def test_sums_of_ranks_keep_what_nothing_beats_and_a_resumed_fit_goes_on(town, source_model, sfda, tmp_path):
    folder = tmp_path / "run"
    die(arguments(town, source_model), folder, epoch=3)
    assert sfda("fit", "--run", folder) == 0
    for score, first in (("judge_and_infomax", "judge_agreement"), ("views_and_infomax", "view_agreement")):
        check_rank_sum(folder, score, first)


def check_rank_sum(folder, score, first):
    report = reports(folder)[score]
    pairs = [candidate["values"] for candidate in report["candidates"]]
    assert pairs == [
        pytest.approx(pair, rel=1e-5) for pair in zip(logged(folder, first), logged(folder, "infomax"), strict=True)
    ]
    columns = list(zip(*pairs, strict=True))
    totals = [sum(sorted(column).index(pair[i]) for i, column in enumerate(columns)) for pair in pairs]
    assert report["selected"]["epoch"] == totals.index(max(totals))
    names = {f"epoch={c['epoch']}-step={c['step']}.ckpt" for c in report["candidates"]}
    beaten_by_none = {
        f"epoch={c['epoch']}-step={c['step']}.ckpt"
        for c in report["candidates"]
        if not any(other != c["values"] and other >= c["values"] and other[1] >= c["values"][1] for other in pairs)
    }
    kept = {path.name for path in (folder / "candidates" / score).iterdir()}
    assert kept == beaten_by_none <= names


def test_what_is_reached_by_another_row_in_both_columns_is_beaten():
    values = torch.tensor([[1.0, 5.0], [2.0, 4.0], [1.0, 4.0], [2.0, 4.0], [0.0, 6.0]])
    assert beaten(values).tolist() == [False, False, True, False, False]
    assert beaten(values[:1]).tolist() == [False]


@pytest.mark.medium
def test_a_method_that_optimises_a_score_is_not_silently_selected_by_it(town, source_model, sfda, tmp_path, capsys):
    callbacks = ["--trainer.callbacks+", "sfda.callbacks.select_by_entropy.SelectByEntropy"]
    for model, warned in (("tent", True), ("cotta", False)):
        words = [*tiny_arguments(model, town, source_model), *callbacks, "--out", tmp_path / model]
        assert sfda("fit", *words) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert ("SelectByEntropy: Tent trains on entropy, so that its entropy improves by itself" in said) == warned
        report = json.loads((tmp_path / model / "selection.json").read_text())
        assert report["trained_on"] == (["entropy"] if warned else [])


@pytest.mark.medium
def test_the_score_callback_and_its_selector_compute_the_score_once(town, source_model, sfda, tmp_path):
    both = ("view_agreement.ViewAgreement", "select_by_view_agreement.SelectByViewAgreement")
    words = [word for name in both for word in ("--trainer.callbacks+", f"sfda.callbacks.{name}")]
    assert sfda("fit", *tiny_arguments("tent", town, source_model), *words, "--out", tmp_path / "run") == 0
    assert 0 < reports_of_one(tmp_path / "run")["selected"]["value"] <= 1


@pytest.mark.medium
def test_nothing_is_selected_where_there_is_one_model_and_its_scores_are_kept(
    town, source_model, sfda, tmp_path, capsys
):
    folder = tmp_path / "run"
    assert sfda("fit", *tiny_arguments("ada_bn", town, source_model), *ALL, "--out", folder) == 0
    warned = " ".join(capsys.readouterr().err.split())
    assert "SelectByJudgeAgreement: AdaBN makes one model, nothing is selected" in warned
    row = json.loads((folder / "result.json").read_text())
    assert (row["selected_by"], row["selected_step"]) == ("last", 0)
    assert not (folder / "candidates").exists()
    assert "selected_by" not in reports_of_one(folder)  # the verdict alone
    assert 0 < logged(folder, "view_agreement")[-1] <= 1


def reports_of_one(folder):
    return json.loads((folder / "selection.json").read_text())


@pytest.mark.medium
def test_dropout_before_the_head_changes_classes_and_leaves_no_hook(town, source_model, sfda, tmp_path):
    from sfda.callbacks.select_by_dropout_agreement import SelectByDropoutAgreement
    from sfda.methods.source_only import SourceOnly
    from tiny_runs import NETWORK

    method = SourceOnly(network=NETWORK, num_classes=19, source_checkpoint=str(source_model)).eval()
    method.initialise_from_source()
    images = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    selector = SelectByDropoutAgreement()
    selector._head = method.network.head

    def predict(shown, size):
        return method.single_view_probabilities(shown, size)

    with torch.no_grad():
        plain = predict(images, (24, 32)).argmax(1)
        agreement = selector.score_images(predict, images, plain)
        _, features = method.network.forward_features(images, "head_input")
        drawn = torch.rand(features.shape[1:], generator=torch.Generator().manual_seed(0))
        logits = method.network.apply_head(torch.where(drawn >= 0.5, 2 * features, 0.0), (24, 32))
        assert torch.equal(predict(images, (24, 32)).argmax(1), plain)
    expected = (logits.argmax(1) == plain).double().mean((1, 2))
    assert agreement.tolist() == pytest.approx(expected.tolist())
    assert (agreement < 1).all()
