"""A metric of somebody else's is one class in a module of theirs, and counts like any other."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassCohenKappa

from sfda.callbacks.extra_scores import ExtraScores
from sfda.callbacks.selection import Selector
from sfda.data.label_spaces import CITYSCAPES19, SYNTHIA16
from sfda.data.readers import Domain, SegmentationSet
from sfda.errors import UserError
from sfda.methods.source_only import SourceOnly
from sfda.metrics.scoring import Scoring, score_names
from sfda.metrics.segmentation import SegmentationMetrics
from tiny_runs import NETWORK, tiny_arguments

pytestmark = pytest.mark.medium
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


class Kappa(ExtraScores):
    """Cohen's kappa, where there are labels."""

    def make_metric(self, classes, with_labels):
        return MulticlassCohenKappa(len(classes), ignore_index=255) if with_labels else None


class Shares(MeanMetric):
    """Shares of the pixels by name; `lost` has no value."""

    def update(self, probabilities, labels=None):
        super().update((probabilities.argmax(1) == 0).double())

    def compute(self):
        return {"share_of_road": super().compute(), "lost": torch.tensor(float("nan"))}


class ShareOfRoad(ExtraScores):
    """Needs no label."""

    def make_metric(self, classes, with_labels):
        return Shares().set_dtype(torch.float64)


class Twice(ExtraScores):
    """A name that is taken."""

    def make_metric(self, classes, with_labels):
        class Other(Shares):
            def compute(self):
                return {"miou": torch.tensor(0.0)}

        return Other()


class BySmallestShare(Selector):
    score = "share_of_road"


class ByChurn(Selector):
    score = "churn"


class ByNothing(Selector):
    score = "of_nobody"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "their_scores", sys.modules[__name__])
    for made in (Kappa, ShareOfRoad, Twice, BySmallestShare, ByChurn, ByNothing):
        monkeypatch.setattr(made, "__module__", "their_scores")


def callbacks(*names):
    return [word for name in names for word in ("--trainer.callbacks+", f"their_scores.{name}")]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def read(town):
    """Images (N, 3, H, W) and labels (N, H, W) of the town's target validation set."""
    samples = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), "val", True, CITYSCAPES19)
    pairs = [samples.read(i) for i in range(len(samples))]
    images = torch.from_numpy(np.stack([pair.image for pair in pairs]).transpose(0, 3, 1, 2)).float() / 255
    return images, torch.from_numpy(np.stack([pair.label for pair in pairs]))


def source_only(source_model):
    method = SourceOnly(network=NETWORK, num_classes=19, source_checkpoint=str(source_model)).eval()
    method.initialise_from_source()
    return method


def kappa(predictions, labels):
    """(observed − chance) / (1 − chance) agreement over the labelled pixels."""
    labelled = labels != 255
    predictions, labels = predictions[labelled], labels[labelled]
    chance = sum((predictions == c).mean() * (labels == c).mean() for c in range(19))
    return ((predictions == labels).mean() - chance) / (1 - chance)


@pytest.mark.parametrize("processes", [[], TWO], ids=["one_process", "two_processes"])
def test_scores_of_ones_own_stand_in_the_row(processes, town, source_model, sfda, tmp_path):
    folder = tmp_path / "run"
    arguments = [*tiny_arguments("source_only", town, source_model), *callbacks("Kappa", "ShareOfRoad"), *processes]
    assert sfda("validate", *arguments, "--out", folder) == 0
    images, labels = read(town)
    with torch.no_grad():
        predictions, labels = source_only(source_model).predict_probabilities(images).argmax(1).numpy(), labels.numpy()
    row = result(folder)
    assert row["target_kappa"] == pytest.approx(kappa(predictions, labels), abs=1e-3)
    assert row["target_share_of_road"] == pytest.approx((predictions == 0).mean(), abs=1e-3)
    assert 0 <= row["source_share_of_road"] <= 1
    assert row["target_lost"] is row["source_lost"] is None


def test_every_score_of_both_domains_is_in_the_row(town, source_model, sfda, tmp_path):
    assert sfda("validate", *tiny_arguments("source_only", town, source_model), "--out", tmp_path / "run") == 0
    row = result(tmp_path / "run")
    names = list(SegmentationMetrics(CITYSCAPES19.names).compute())
    assert {"missing_classes", "mce", "ece_adaptive", "ece_10", "ece_image_mean", "infomax"} <= set(names)
    of_domains = [f"{domain}_{name}" for domain in ("target", "source") for name in names]
    assert [key for key in row if key.startswith(("target_", "source_")) and key != "source_free"] == of_domains
    metrics = SegmentationMetrics(CITYSCAPES19.names)
    method, images, labels = source_only(source_model), *read(town)
    with torch.no_grad():
        metrics.update(method.predict_probabilities(images), labels)
    for name, value in metrics.compute().items():
        expected = None if value.isnan() else pytest.approx(value.item(), abs=1e-5)
        assert row[f"target_{name}"] == expected, name


def test_a_metric_that_needs_labels_is_left_out_where_there_are_none(town, source_model, sfda, tmp_path):
    shutil.copytree(town, tmp_path / "town")
    shutil.rmtree(tmp_path / "town/cityscapes/gtFine")
    arguments = [*tiny_arguments("source_only", tmp_path / "town", source_model), *callbacks("Kappa", "ShareOfRoad")]
    assert sfda("validate", *arguments, "--out", tmp_path / "run") == 0
    row = result(tmp_path / "run")
    assert "target_kappa" not in row
    assert row["source_kappa"] is not None
    assert row["target_share_of_road"] is not None


def test_a_name_that_is_taken_is_refused(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("source_only", town, source_model), *callbacks("Twice")]
    assert sfda("validate", *arguments, "--out", tmp_path / "run") == 2
    assert "the scores miou of Other are computed by another metric too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("selector", "more"), [("BySmallestShare", ["ShareOfRoad"]), ("ByChurn", [])], ids=["of a metric", "logged alone"]
)
def test_any_score_can_be_selected_by(selector, more, town, source_model, sfda, tmp_path):
    """`churn` is logged by a callback, and is no metric."""
    arguments = [*tiny_arguments("tent", town, source_model), *callbacks(selector, *more), "--trainer.max_epochs", 3]
    assert sfda("fit", *arguments, "--model.init_args.lr", 0.1, "--out", tmp_path / "run") == 0
    report = json.loads((tmp_path / "run/selection.json").read_text())
    values = [candidate["value"] for candidate in report["candidates"]]
    assert len(values) == 3
    assert all(value == value for value in values)
    assert report["selected"]["epoch"] == min(range(3), key=values.__getitem__)
    score = "churn" if selector == "ByChurn" else "share_of_road"
    assert report["selected_by"] == score
    assert result(tmp_path / "run")["selected_by"] == ("verdict" if report["source_is_kept"] else score)


def test_a_score_that_nobody_logs_is_refused_after_the_first_validation(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("tent", town, source_model), *callbacks("ByNothing"), "--trainer.max_epochs", 3]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "ByNothing monitors 'of_nobody', which is not among the scores of a validation: " in error
    assert "churn, class_coverage" in error
    assert not (tmp_path / "run/result.json").exists()


# --------------------------------------------------------------------- without a Trainer


def test_a_validation_has_the_scores_that_are_named_before_it():
    classes, probabilities = SYNTHIA16, torch.rand(2, 16, 4, 5).softmax(1)
    method = SourceOnly(network=NETWORK, num_classes=16)
    for with_labels in (True, False):
        scoring = Scoring()
        scoring.open(classes, {"target": with_labels}, method.make_metrics)
        scoring.update("target", probabilities, torch.randint(0, 16, (2, 4, 5)) if with_labels else None)
        names = score_names(method.make_metrics(classes, with_labels))
        assert list(scoring.compute()["target"]) == names
        assert ("miou13" in names) == with_labels


def test_a_metric_is_added_once_and_forgets_what_it_is_told_to():
    scoring, callback = Scoring(), ShareOfRoad()
    for _ in range(2):
        scoring.add("share", callback.make_metric)
    scoring.open(CITYSCAPES19, {"target": False}, lambda classes, labels: [])
    images = torch.zeros(1, 19, 2, 2)
    scoring.update("target", images, None)
    assert scoring.compute()["target"]["share_of_road"] == 1
    scoring.reset()
    images[:, 3] = 1
    scoring.update("target", images, None)
    assert scoring.compute()["target"]["share_of_road"] == 0
    assert not scoring.state_dict()  # a checkpoint holds none of it


def test_one_metric_cannot_have_two_scores_of_a_name():
    scoring = Scoring()
    scoring.add("one", lambda classes, labels: Shares())
    scoring.add("other", lambda classes, labels: Shares())
    scoring.open(CITYSCAPES19, {"target": False}, lambda classes, labels: [])
    scoring.update("target", torch.rand(1, 19, 2, 2), None)
    with pytest.raises(UserError, match="the scores lost, share_of_road of Shares"):
        scoring.compute()
