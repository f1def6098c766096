"""A file of weights never names code: every door that reads one, with every field that could."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sfda.cli.main import main
from tiny_runs import tiny_arguments

pytestmark = pytest.mark.medium
Options = dict[str, Any]

EVIL = """
from pathlib import Path
from sfda.methods.source_only import SourceOnly
Path("canary").touch()
class Evil(SourceOnly):
    pass
def build(num_classes):
    Path("canary").touch()
"""
MINE = """
from pathlib import Path
from sfda.methods.source_only import SourceOnly
class Mine(SourceOnly):
    def __init__(self, hook: str | None = None, **base):
        super().__init__(**base)
        if hook is not None:
            Path("canary").touch()
"""
"""Modules in the working directory, which methods and networks of the user's own are imported from."""


class Pickled:
    """What an unpickler that trusts its file executes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


FIELDS: dict[str, Callable[[Options], object]] = {
    "network: os.system": lambda options: {**options, "network": "os.system", "num_classes": "touch canary"},
    "network: os._exit": lambda options: {**options, "network": "os._exit"},
    "network: evil.build": lambda options: {**options, "network": "evil.build"},
    "_class_path: evil.Evil": lambda options: {**options, "_class_path": "evil.Evil"},
    "_class_path: os.system": lambda options: {"_class_path": "os.system", "command": "touch canary"},
    "a list": lambda options: ["network", "os.system"],
    "a string": lambda options: "network: os.system",
    "pickled": lambda options: {**options, "views": Pickled()},
}
"""What a stranger makes of `hyper_parameters`."""

IGNORED: dict[str, Options | str] = {
    "hyper_parameters": {"_instantiator": "evil.build", "calibrated_model": {"class": "evil.Evil"}},
    "hparams": {"network": "evil.build"},
    "module_arguments": {"network": "evil.build"},
    "hparams_name": "network",
    "hparams_type": "os.system",
}
"""What Lightning may act upon, and nothing here does."""

DOORS = {
    "fit pseudo_cal": "fit @pseudo_cal {short}",
    "fit temperature_scaling": "fit @temperature_scaling {short}",
    "fit tent": "fit @tent {short}",
    "validate source_only": "validate @source_only {short}",
    "calibrate --with pseudo_cal": "calibrate --run run --with pseudo_cal",
    "calibrate --with label_calibration": "calibrate --run run --with label_calibration",
    "predict --run": "predict --run run --images {images} --out out",
    "predict --checkpoint": "predict --run {genuine} --checkpoint run/selected.ckpt --images {images} --out out",
    "validate --run": "validate --run run",
    "validate --ckpt_path": "validate --config run/config.yaml --ckpt_path run/selected.ckpt {short}",
    "fit --run": "fit --run unfinished",
    "fit --ckpt_path": "fit --config run/config.yaml --ckpt_path run/selected.ckpt {short}",
}
"""Commands that open a checkpoint; @model: the arguments of a method that starts from it."""
SHORT = "--trainer.limit_train_batches 1 --trainer.limit_val_batches 1 --out out"
TAKE_THE_NETWORK_ALONE = ("fit tent", "validate source_only")
OPEN_WHAT_IS_CALIBRATED = (
    *("fit pseudo_cal", "calibrate --with pseudo_cal", "calibrate --with label_calibration", "predict --run"),
    *("predict --checkpoint", "validate --run", "fit --run"),
)

Go = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def genuine(source_model: Path, town: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of a plain method and of its calibration, and images."""
    calibrated = tmp_path_factory.mktemp("calibrated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        words = ["calibrate", "--run", str(source_model.parent), "--with", "pseudo_cal", "--out", str(calibrated)]
        assert main(words) == 0
    return {"plain": source_model.parent, "calibrated": calibrated, "images": town / "cityscapes/leftImg8bit/val"}


@pytest.fixture
def go(genuine, town, sfda, tmp_path, capfd) -> Go:
    """Puts a checkpoint into run folders and goes through a door; gives the exit status and what was printed."""

    def through(door: str, kind: str, checkpoint: Options, *more: str, fork: bool = False) -> tuple[int, str]:
        for folder, names in (("run", ("config.yaml", "result.json")), ("unfinished", ("config.yaml",))):
            Path(folder).mkdir(exist_ok=True)
            for name in names:
                shutil.copy(genuine[kind] / name, folder)
            for name in ("selected.ckpt", "last.ckpt"):
                torch.save(checkpoint, Path(folder, name))
        command = DOORS[door].format(genuine=genuine["plain"], images=genuine["images"], short=SHORT)
        words = [
            argument
            for word in command.split()
            for argument in (tiny_arguments(word[1:], town, Path("run/selected.ckpt")) if word[0] == "@" else [word])
        ]
        status = forked(lambda: sfda(*words, *more)) if fork else sfda(*words, *more)
        return status, "".join(capfd.readouterr())

    (tmp_path / "evil.py").write_text(EVIL)
    yield through
    loaded = sys.modules.pop("evil", None)
    assert not (tmp_path / "canary").exists()
    assert loaded is None


def forked(function: Callable[[], int]) -> int:
    """What the function gives, in a process of its own: it may not come back."""
    came_back = 100
    if (process := os.fork()) == 0:
        status = function()
        sys.stderr.flush()
        os._exit(came_back + status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) - came_back


def load(genuine: dict[str, Path], kind: str) -> Options:
    return torch.load(genuine[kind] / "selected.ckpt", weights_only=True)


def assert_refused(outcome: tuple[int, str]) -> None:
    status, text = outcome
    assert status == 2, text
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("sfda: ")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_executed(door, field, go, genuine):
    checkpoint = load(genuine, "plain")
    hostile = {**checkpoint, "hyper_parameters": FIELDS[field](checkpoint["hyper_parameters"])}
    outcome = go(door, "plain", hostile, fork="_exit" in field)
    if door in TAKE_THE_NETWORK_ALONE and "_class_path" in field:
        assert outcome[0] == 0, outcome[1]  # whatever the method was, it is not what is asked for
    else:
        assert_refused(outcome)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("door", OPEN_WHAT_IS_CALIBRATED)
def test_nothing_is_executed_for_what_a_checkpoint_calibrates(door, field, go, genuine):
    checkpoint = load(genuine, "calibrated")
    hidden = FIELDS[field](checkpoint["calibrated"]["hyper_parameters"])
    hostile = {**checkpoint, "calibrated": {**checkpoint["calibrated"], "hyper_parameters": hidden}}
    # what is said of another run says nothing of this one
    assert_refused(go(door, "calibrated", hostile, fork="_exit" in field))


@pytest.mark.parametrize("kind", ["plain", "calibrated"])
@pytest.mark.parametrize("door", ["fit pseudo_cal", "predict --run", "predict --checkpoint"])
def test_what_only_lightning_would_read_is_ignored(door, kind, go, genuine):
    checkpoint = load(genuine, kind)
    options = {**checkpoint["hyper_parameters"], **IGNORED["hyper_parameters"]}
    status, text = go(door, kind, {**checkpoint, **IGNORED, "hyper_parameters": options})
    assert status == 0, text


def test_a_class_outside_sfda_needs_the_users_own_word(go, genuine, sfda, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    checkpoint = load(genuine, "plain")
    stored = {key: checkpoint["hyper_parameters"][key] for key in ("network", "num_classes")}
    checkpoint["hyper_parameters"] = {**stored, "_class_path": "mine.Mine", "hook": "of the file"}

    outcome = go("fit pseudo_cal", "plain", checkpoint)
    assert_refused(outcome)
    assert "--model.init_args.calibrated_model.class mine.Mine" in outcome[1]
    assert "mine" not in sys.modules
    assert go("fit pseudo_cal", "plain", checkpoint, "--model.init_args.calibrated_model.class", "mine.Mine")[0] == 0

    config = yaml.safe_load(Path("run/config.yaml").read_text())
    of_base = {key: config["model"]["init_args"][key] for key in ("network", "source_checkpoint", "views")}
    config["model"] = {"class_path": "mine.Mine", "init_args": {**of_base, "hook": None}}
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    images = next((genuine["images"]).rglob("*.png"))
    assert sfda("calibrate", "--run", "run", "--with", "pseudo_cal") == 0
    for run in ("run", "run+pseudo_cal"):
        assert sfda("predict", "--run", run, "--images", images, "--out", f"of_{run}") == 0
    maps = [next(Path(f"of_{run}").glob("*_trainIds.png")).read_bytes() for run in ("run", "run+pseudo_cal")]
    assert maps[0] == maps[1]
    sys.modules.pop("mine")


def test_a_calibrated_run_of_before_that_names_no_model_is_read(go, genuine, sfda):
    checkpoint = load(genuine, "calibrated")
    del checkpoint["hyper_parameters"]["calibrated_model"]
    assert go("predict --checkpoint", "calibrated", checkpoint)[0] == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    del config["model"]["init_args"]["calibrated_model"]
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    assert sfda("predict", "--run", "run", "--images", genuine["images"], "--out", "again") == 0
