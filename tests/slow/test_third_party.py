"""A package of somebody else: nothing is registered, and every command knows its method, layout, score and network."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from commands import run_sfda, run_truly
from sfda.data.label_spaces import CITYSCAPES19

pytestmark = pytest.mark.slow
PACKAGE = Path(__file__).parents[1] / "third_party"


@pytest.fixture(scope="module")
def project(town, tmp_path_factory):
    """The package's own checkout, in which its comparison has run."""
    folder = tmp_path_factory.mktemp("third_party") / "checkout"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    (folder / "data/streets").symlink_to(town)
    done = run_truly(folder, "compare", "compare/mine.yaml", "--out", "runs/mine")
    assert done.status == 0, done.output
    assert "view_consistency" in done.output
    return folder


def run(folder, *words):
    done = run_sfda(folder, *words)
    assert done.status == 0, done.output
    return done


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_its_method_stands_in_the_table_and_has_trained(project):
    rows = {row["experiment"]: row for row in json.loads((project / "runs/mine/results.json").read_text())}
    assert set(rows) == {"source_only", "view_consistency"}
    assert rows["view_consistency"]["method"] == "ViewConsistency"
    assert rows["view_consistency"]["source_free"]
    assert rows["view_consistency"]["labels_read"] is None
    before = weights(project / "runs/mine/source_training/seed1/selected.ckpt")
    after = weights(project / "runs/mine/view_consistency/seed1/selected.ckpt")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("weight"))


def test_its_layout_is_read_and_its_score_stands_in_rows_and_table(project):
    for row in json.loads((project / "runs/mine/results.json").read_text()):
        assert row["target"] == "data/streets/cityscapes"
        assert -1 <= row["target_kappa"] <= 1
        assert -1 <= row["source_kappa"] <= 1
        assert row["target_missing_classes"] == sum(row[f"target_iou_{name}"] is None for name in CITYSCAPES19.names)
    done = run_truly(project, "compare", "compare/mine.yaml", "--out", "runs/mine")
    assert "kappa" in done.output
    assert "source-" in done.output
    assert "did you mean" not in done.output


def test_its_run_predicts_and_is_calibrated(project):
    fit = "runs/mine/view_consistency/seed1"
    images = ("--images", "data/streets/cityscapes/leftImg8bit/val")
    run(project, "predict", "--run", fit, *images, "--out", "predictions")
    assert len(list((project / "predictions").rglob("*_trainIds.png"))) == 6
    run(project, "calibrate", "--run", fit, "--with", "pseudo_cal")
    run(project, "validate", "--run", "runs/mine/view_consistency+pseudo_cal/seed1")
    run(project, "predict", "--run", "runs/mine/view_consistency+pseudo_cal/seed1", *images, "--out", "calibrated")
    assert len(list((project / "calibrated").rglob("*_trainIds.png"))) == 6
    row = json.loads((project / "runs/mine/view_consistency+pseudo_cal/seed1/result.json").read_text())
    plain = json.loads((project / fit / "result.json").read_text())
    assert row["target_miou"] == plain["target_miou"]  # one temperature changes no predicted pixel
    assert row["target_ece"] != plain["target_ece"]
