"""The console script itself, once per command.

Notebooks type `fit`, `validate` and `calibrate`, the third party's tests type `compare`.
"""

import json
from pathlib import Path

import pytest
import yaml

from commands import run_truly
from tiny_runs import tiny_arguments

pytestmark = pytest.mark.slow
TESTS = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def test_data(tmp_path):
    done = run_truly(tmp_path, "data", "streets", "--out", "town", "--height", "16", "--width", "32")
    assert done.status == 0, done.output
    data = {"class_path": "any", "init_args": {"target": {"layout": "cityscapes", "root": "town/cityscapes"}}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    done = run_truly(tmp_path, "data", "check", "--config", "data.yaml")
    assert done.status == 0, done.output
    assert "no faults in 400 pairs" in done.output


def test_predict(town, source_model, tmp_path):
    images = town / "cityscapes/leftImg8bit/val"
    done = run_truly(tmp_path, "predict", "--run", source_model.parent, "--images", images, "--out", "here", **TESTS)
    assert done.status == 0, done.output
    assert len(list((tmp_path / "here").rglob("*_trainIds.png"))) == 6


def test_sweep(town, source_model, tmp_path):
    sweep = {
        "method": "grid",
        "metric": {"name": "target/entropy", "goal": "minimize"},
        "parameters": {"model.init_args.alpha": {"values": [0.1]}},
        "command": ["sfda", "fit", *tiny_arguments("ada_bn", town, source_model), "${args}"],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(sweep))
    done = run_truly(tmp_path, "sweep", "mine.yaml", "--trials", "1", "--out", "trials", **TESTS)
    assert done.status == 0, done.output
    assert json.loads((tmp_path / "trials/results.json").read_text())[0]["status"] == "finished"
