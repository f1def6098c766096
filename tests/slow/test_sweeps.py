"""Two of the sweep files as they are, two trials each: by an offline engine of W&B's sweeps, and by `sfda sweep`.

A folder `experiment/streets` in the working directory stands in for the project's own: the tiny town, the tiny network.
"""

import json
import os
from pathlib import Path

import pytest
import yaml

from commands import run_truly
from sfda.cli.main import main
from sfda.runs.experiment import configs_folder
from sfda.runs.run import Run
from tiny_runs import NETWORK
from wandb_files import content

pytestmark = pytest.mark.slow
FILES = ("ada_bn", "tent")


@pytest.fixture
def here(town, source_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)  # of whatever ran before in this process
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # of the tiny network
    folder = tmp_path / "experiment/streets"
    folder.mkdir(parents=True)
    data = {
        "class_path": "sfda.data.datamodule.DomainAdaptationDataModule",
        "init_args": {
            "source": {"layout": "gta5", "root": str(town / "gta5")},
            "target": {"layout": "cityscapes", "root": str(town / "cityscapes")},
            "crop": [24, 48], "batch_size": 4, "samples_per_epoch": 8, "val_batch_size": 4, "num_workers": 0,
        },
    }  # fmt: skip
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    trainer = str(configs_folder() / "trainer/cpu.yaml")
    (folder / "base.yaml").write_text(yaml.safe_dump({"seed_everything": 1, "data": "data.yaml", "trainer": trainer}))
    model = {"init_args": {"network": NETWORK, "source_checkpoint": str(source_model)}}
    for name in FILES:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": model, "trainer": {"max_epochs": 1}}))
    return tmp_path


def run(sfda: str, *words: str, **variables: str) -> str:
    assert sfda == "sfda"
    done = run_truly(Path.cwd(), *words, COLUMNS="120", **variables)
    assert done.status == 0, done.output
    return done.output


@pytest.mark.parametrize("name", FILES)
def test_by_sfda_sweep(name, here):
    out = here / "runs/sweep" / name
    printed = run("sfda", "sweep", f"sweep/{name}.yaml", "--trials", "2")
    rows = json.loads((out / "results.json").read_text())
    metric = yaml.safe_load((configs_folder() / f"sweep/{name}.yaml").read_text())["metric"]["name"]
    assert [row["status"] for row in rows] == ["finished", "finished"]
    for row in rows:
        folder = here / row["folder"]
        config = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
        assert {f"model.init_args.{key}": config[key] for key in ("alpha", "lr") if key in config}.items() <= row[
            "parameters"
        ].items()
        assert row["value"] == Run(folder).scores()[metric]
        assert f"{row['value']:.4f}" in printed
        (wandb,) = (content(path) for path in folder.glob("wandb/offline-run-*/run-*.wandb"))
        assert wandb["run"].run_group == name
        assert wandb["summary"][metric] == pytest.approx(row["value"])
    finished = [(here / row["folder"] / "selected.ckpt").stat().st_mtime_ns for row in rows]
    assert run("sfda", "sweep", f"sweep/{name}.yaml", "--trials", "2").count("finished before") == 2
    assert [(here / row["folder"] / "selected.ckpt").stat().st_mtime_ns for row in rows] == finished


def test_a_wrong_option_is_found_before_any_trial(here, capsys):
    file = yaml.safe_load((configs_folder() / "sweep/tent.yaml").read_text())
    file["parameters"]["model.init_args.learning_rate"] = {"value": 0.1}
    (here / "wrong.yaml").write_text(yaml.safe_dump(file))
    assert main(["sweep", "wrong.yaml", "--trials", "2"]) == 2
    assert "'learning_rate' is not accepted" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.parametrize("name", FILES)
def test_by_an_offline_engine_of_wandbs_sweeps(name, here):
    sweeps = pytest.importorskip("sweeps")
    file = yaml.safe_load((configs_folder() / f"sweep/{name}.yaml").read_text())
    assert sweeps.schema_violations_from_proposed_config(file) == []
    metric, runs = file["metric"]["name"], []
    for run_id in ("first", "second"):
        suggested = sweeps.next_run(file, runs, validate=True)
        sent = json.loads(json.dumps(suggested.config, default=lambda value: value.item()))  # as the server sends it
        as_an_agent(file["command"], sent, run_id)
        folder = here / "runs/streets" / name / "sweep-offline" / run_id
        assert (folder / "result.json").is_file()
        (wandb,) = (content(path) for path in folder.glob("wandb/offline-run-*/run-*.wandb"))
        assert (wandb["run"].run_id, wandb["run"].sweep_id, wandb["exit"]) == (run_id, "offline", 0)
        for key, value in sent.items():
            assert wandb["config"][key] == value["value"]  # what the engine asked for
            assert wandb["config"]["model"]["init_args"][key.rpartition(".")[2]] == value["value"]  # what was run
        suggested.summary_metrics = {metric: wandb["summary"][metric]}
        assert suggested.summary_metrics[metric] == pytest.approx(Run(folder).scores()[metric])
        suggested.state = sweeps.RunState.finished
        runs.append(suggested)
    assert runs[0].config != runs[1].config


def as_an_agent(command: list[str], config: dict, run_id: str) -> None:
    """Start a run as W&B's agent does, with its own functions for ``${args}`` and the file of parameters."""
    from wandb.sdk.launch.sweeps import utils
    from wandb.sdk.lib import config_util

    path = Path("wandb/sweep-offline") / f"config-{run_id}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    config_util.save_config_file_from_dict(str(path), config)
    macros = utils.create_sweep_command_args({"args": config})
    words = [
        word
        for part in utils.create_sweep_command(list(command))
        for word in (macros[part[2:-1]] if part.startswith("${") else [part])
    ]
    run(*words, WANDB_SWEEP_ID="offline", WANDB_RUN_ID=run_id, WANDB_SWEEP_PARAM_PATH=str(path.resolve()))
