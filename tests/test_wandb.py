"""W&B: one offline run for a run folder, whatever happens in it."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import Namespace

from sfda.callbacks.wandb_run import settle_wandb_loggers
from sfda.judging.verdict import Verdict
from sfda.runs.wandb_group import log_comparison
from tiny_runs import tiny_arguments
from wandb_files import content

LOGGER = ["--trainer.logger", "logger/wandb.yaml"]


def wandb_runs(folder: Path) -> list[dict]:
    """Everything that W&B has written into a run folder, in order."""
    return [content(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def options(save_dir=".", **given):
    init_args = Namespace(save_dir=save_dir, name=None, id=None, resume=None, **{})
    init_args.update(Namespace(**given))
    return Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=init_args)


@pytest.fixture(autouse=True)
def _no_sweep(monkeypatch):
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)


def test_a_logger_gets_the_run_folder_a_name_and_an_id():
    one, other = options(), options()
    settle_wandb_loggers(
        [one, Namespace(class_path="CSVLogger", init_args=Namespace())], Path("runs/a/seed1"), goes_on=False
    )
    settle_wandb_loggers(other, Path("runs/a/seed2"), goes_on=False)
    assert (one.init_args.save_dir, one.init_args.name, one.init_args.resume) == ("runs/a/seed1", "a/seed1", "allow")
    assert one.init_args.id != other.init_args.id
    assert not one.init_args.id[0].isdigit()  # YAML may take 12e34567 for a number


def test_the_id_is_kept_by_the_run_and_not_inherited_by_another():
    stored = {"save_dir": "runs/a/seed1", "id": "abc", "name": "a/seed1"}
    resumed, copied, given = options(**stored), options(**stored), options(id="mine", name="own")
    settle_wandb_loggers(resumed, Path("runs/a/seed1"), goes_on=True)
    settle_wandb_loggers(copied, Path("runs/b/seed1"), goes_on=False)
    settle_wandb_loggers(given, Path("runs/b/seed1"), goes_on=False)
    assert (resumed.init_args.id, resumed.init_args.name) == ("abc", "a/seed1")
    assert copied.init_args.id != "abc"
    assert copied.init_args.name == "b/seed1"
    assert (given.init_args.id, given.init_args.name) == ("mine", "own")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "offline"), ({"WANDB_MODE": "online"}, "online"), ({"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r"}, None)],
)
def test_offline_unless_the_user_or_a_sweep_says_otherwise(environment, expected, monkeypatch):
    import os

    monkeypatch.delenv("WANDB_MODE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    logger = options()
    settle_wandb_loggers(logger, Path("run"), goes_on=False)
    assert os.environ.get("WANDB_MODE") == expected
    assert (logger.init_args.id == "r") == ("WANDB_SWEEP_ID" in environment)


@pytest.mark.parametrize("nothing", [None, True, False, []])
def test_without_a_wandb_logger_nothing_is_touched(nothing, monkeypatch):
    import os

    monkeypatch.delenv("WANDB_MODE")
    settle_wandb_loggers(nothing, Path("run"), goes_on=False)
    assert "WANDB_MODE" not in os.environ


def test_no_code_reads_the_configuration_from_wandb():
    package = Path(__file__).resolve().parents[1] / "sfda"
    assert not [path for path in package.rglob("*.py") if "wandb.config" in path.read_text()]


def test_a_sweeps_agent_starts_runs_of_one_seed_in_folders_of_their_own(monkeypatch):
    from sfda.runs.arguments import run_name

    assert run_name(3) == "seed3"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "xyz")
    assert run_name(3) == "sweep-abc/xyz"


def test_the_runs_of_a_comparison_are_a_group(tmp_path, monkeypatch):
    from rich.console import Console

    from sfda.runs.engine import run_sfda

    groups = []

    @contextmanager
    def played(words, **environment):
        groups.append(environment["WANDB_RUN_GROUP"])
        yield SimpleNamespace(output=[], status=0)

    monkeypatch.setattr("sfda.runs.engine.started", played)
    for environment in ({}, {"WANDB_RUN_GROUP": "mine"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        run_sfda(Console(quiet=True), ["fit"], tmp_path / "log.txt", "t", group="demo")
    assert groups == ["demo", "mine"]


def compared(folder: Path) -> tuple[list[dict], list[Path]]:
    """Rows and files of a comparison."""
    folder.mkdir()
    rows = [{"experiment": "tent", "seed": seed, "target_miou": 0.3, "verdict": "better"} for seed in (1, 2)]
    rows.append({"experiment": "source_only", "seed": 1, "target_miou": 0.2, "verdict": None, "target_nll": 1.5})
    files = [folder / "report.html", folder / "results.json"]
    files[0].write_text("<p>the page</p>")
    files[1].write_text(json.dumps(rows))
    return rows, files


@pytest.mark.medium
def test_the_page_and_the_table_of_a_comparison_are_artifacts_of_its_group(tmp_path, monkeypatch):
    import wandb

    rows, files = compared(tmp_path / "my demo")
    monkeypatch.delenv("WANDB_MODE")
    for _ in range(2):
        assert log_comparison("logger/wandb.yaml", tmp_path / "my demo", rows, files)
    wandb.teardown()  # what it has read of the environment is not for the tests that follow
    first, second = wandb_runs(tmp_path / "my demo")
    assert first["run"].run_id == second["run"].run_id
    assert (first["run"].run_group, first["run"].project) == ("my demo", "sfda")
    assert first["exit"] == 0
    kind, stored = first["artifacts"]["my-demo-comparison"]
    assert kind == "comparison"
    assert {name: path.read_text() for name, path in stored.items()} == {file.name: file.read_text() for file in files}
    assert first["summary"]["tent/seed2/verdict"] == "better"
    assert first["summary"]["source_only/seed1/target_miou"] == 0.2
    assert "source_only/seed1/verdict" not in first["summary"]
    table = next((tmp_path / "my demo").glob("wandb/offline-run-*/files/media/table/*.json"))
    written = json.loads(table.read_text())
    assert written["columns"] == ["experiment", "seed", "target_miou", "verdict", "target_nll"]
    assert written["data"][2] == ["source_only", 1, 0.2, None, 1.5]


def test_another_logger_of_a_comparison_is_given_nothing(tmp_path):
    rows, files = compared(tmp_path / "demo")
    (tmp_path / "csv.yaml").write_text("class_path: lightning.pytorch.loggers.CSVLogger\n")
    assert not log_comparison(str(tmp_path / "csv.yaml"), tmp_path / "demo", rows, files)
    assert not (tmp_path / "demo/wandb").exists()


@pytest.mark.medium
def test_the_fragment_stands_beside_a_trainer_fragment_in_either_order(monkeypatch):
    from sfda.runs.arguments import expand
    from test_configs import parse

    monkeypatch.setattr("sys.argv", ["sfda"])
    trainer = ["--trainer", "trainer/smoke.yaml"]
    for arguments in ([*LOGGER, *trainer], [*trainer, *LOGGER]):
        config = parse(expand("fit", ["streets/target_oracle", *arguments])).config["fit"].trainer
        assert config.logger.class_path == "lightning.pytorch.loggers.WandbLogger"
        assert config.logger.init_args.project == "sfda"
        assert config.max_epochs == 1


@pytest.mark.medium
def test_fit_and_validation_of_a_folder_are_one_wandb_run(town, source_model, sfda, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "group of mine")
    run = tmp_path / "ada_bn/seed3"
    arguments = [*tiny_arguments("ada_bn", town, source_model), "--model.init_args.alpha", "0.5"]
    assert sfda("fit", *arguments, *LOGGER, "--seed_everything", "3", "--out", run) == 0
    fit_only = (run / "metrics.csv").read_bytes()
    again = ["--run", run, "--out", tmp_path / "other", "--model.init_args.views", "multi_scale"]
    assert sfda("validate", "--run", run, "--then", *again) == 0
    fit, validation = wandb_runs(run)
    (elsewhere,) = wandb_runs(tmp_path / "other")
    config = yaml.safe_load((run / "config.yaml").read_text())

    assert fit["run"].run_id == validation["run"].run_id != elsewhere["run"].run_id
    for part in (fit, validation):
        assert (part["run"].display_name, part["run"].run_group) == ("ada_bn/seed3", "group of mine")
        assert part["exit"] == 0
        assert {key: part["config"][key] for key in config} == config
        assert "git_commit" in part["config"]
    assert elsewhere["config"]["model"]["init_args"]["views"] == "multi_scale"

    row = json.loads((run / "result.json").read_text())
    assert fit["summary"]["target/entropy"] > 0
    assert "target/miou" not in fit["summary"]  # no label was read
    assert fit["summary"]["verdict"] == row["verdict"]
    assert validation["summary"]["target/miou"] == pytest.approx(row["target_miou"])
    pictures = {
        f"pictures/{kind}_{domain}" for kind in ("predictions", "reliability") for domain in ("source", "target")
    }
    assert {key.removesuffix("/_type") for key in validation["summary"] if key.endswith("/_type")} >= pictures
    files = [path for path in run.rglob("wandb/*/files/media/images/pictures/*.png") if "latest-run" not in path.parts]
    assert {path.name.rsplit("_", 2)[0] for path in files} >= {
        picture.removeprefix("pictures/") for picture in pictures
    }
    assert (run / "metrics.csv").read_bytes() == fit_only  # the plain log stays beside W&B's


@pytest.mark.medium
def test_two_ranks_are_one_wandb_run_whose_summary_is_the_selected_checkpoint(town, sfda, tmp_path):
    selector = "[{class_path: sfda.callbacks.select_by_ece.SelectByECE, init_args: {start_after: 0.0}}]"
    arguments = [*tiny_arguments("source_training", town), "--trainer.callbacks", selector, *LOGGER]
    # Far too high a learning rate: the second epoch is the worse one.
    arguments += ["--model.init_args.lr", "1.0", "--model.init_args.poly_power", "0", "--trainer.max_epochs", "2"]
    arguments += ["--data.init_args.batch_size", "2"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert sfda("fit", *arguments, *two, "--out", tmp_path / "run") == 0
    (run,) = wandb_runs(tmp_path / "run")
    assert run["exit"] == 0
    selected = json.loads((tmp_path / "run/selection.json").read_text())["selected"]
    assert run["summary"]["source/ece"] == pytest.approx(selected["value"])
    assert run["summary"]["source/miou"] == pytest.approx(selected["source/miou"])
    assert (run["summary"]["selected_by"], run["summary"]["selectors/ece"]) == ("ece", selected["step"])
    logged = [row["source/ece"] for row in run["history"] if "source/ece" in row]
    assert len(logged) == 2
    assert min(logged) == pytest.approx(selected["value"])
    assert logged[-1] > min(logged)  # otherwise the last would do


@pytest.mark.medium
def test_validation_stands_where_the_fit_was_when_the_checkpoint_was_written(
    town, source_model, sfda, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    monkeypatch.setattr("sfda.callbacks.fit_verdict.judge_without_labels", lambda *_, **__: Verdict("cannot tell", ()))
    arguments = [*tiny_arguments("tent", town, source_model), *LOGGER, "--trainer.max_epochs", "2"]
    assert sfda("fit", *arguments, "--out", run) == 0
    assert sfda("validate", "--run", run) == 0
    steps = json.loads((run / "result.json").read_text())["selected_step"]
    assert steps > 2
    fit, validation = wandb_runs(run)
    during = [row["trainer/global_step"] for row in fit["history"] if "target/entropy" in row]
    assert during == [steps / 2 - 1, steps - 1]  # Lightning counts the last step after its validation
    scores = [row for row in validation["history"] if "target/miou" in row]
    assert [row["trainer/global_step"] for row in scores] == [steps]
    assert not [row for row in validation["history"] if row.get("epoch") == 0 or row["trainer/global_step"] != steps]


@pytest.mark.medium
def test_a_fit_that_fails_is_a_failed_wandb_run(town, source_model, sfda, tmp_path):
    arguments = [*tiny_arguments("ada_bn", town, source_model), *LOGGER, "--trainer.max_time", "00:00:00:00"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    (run,) = wandb_runs(tmp_path / "run")
    assert run["exit"] == 1


@pytest.mark.medium
def test_the_default_needs_no_wandb(town, source_model, sfda, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # importing it fails
    assert sfda("fit", *tiny_arguments("ada_bn", town, source_model), "--out", tmp_path / "run") == 0
    assert (tmp_path / "run/metrics.csv").is_file()
    assert not (tmp_path / "run/wandb").exists()
