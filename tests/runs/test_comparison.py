import csv
import json
import shlex
import statistics
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from sfda.cli.main import main
from sfda.errors import UserError
from sfda.files import WriteError
from sfda.runs.comparison import plan, read_comparison
from sfda.runs.engine import fit, has_fit, run_sfda
from sfda.runs.experiment import configs_folder
from sfda.runs.tables import as_table, unknown_columns, write_results
from tiny_runs import NETWORK
from wandb_files import content

HEAD = ["experiment", "method", "seed", "source", "target", "class_set", "views", "network", "source_free"]
HEAD += ["labels_read", "selected_by", "selected_step"]
TAIL = ["adapt_seconds", "peak_memory_mb", "trained_parameters", "version"]
TAIL += ["git_commit", "config"]


def row(experiment, seed, miou, **more):
    return {
        "experiment": experiment, "method": "M", "seed": seed, "source": "a", "target": "b", "class_set": "c",
        "views": "single", "source_free": True, "labels_read": None, "target_miou": miou, "target_ece": 0.05,
        "adapt_seconds": None, **more,
    }  # fmt: skip


def printed(rows, width=200):
    console = Console(file=StringIO(), width=width)
    console.print(as_table(rows))
    return console.file.getvalue()


def write_comparison(path, **content):
    path.write_text(yaml.safe_dump({"benchmark": "streets", "seeds": [1], "experiments": ["ada_bn"], **content}))
    return str(path)


def stage_of(path, name, seed=1, out="out", **content):
    comparison = read_comparison(write_comparison(path, experiments=[name], seeds=[seed], **content))
    return plan(comparison, Path(out))[name, seed]


def test_dependencies_come_first_and_once(tmp_path):
    comparison = read_comparison(
        write_comparison(tmp_path / "c.yaml", experiments=["ada_bn", "target_oracle"], seeds=[1, 2])
    )
    stages = plan(comparison, Path("out"))
    assert list(stages) == [
        ("source_training", 1), ("ada_bn", 1), ("target_oracle", 1),
        ("source_training", 2), ("ada_bn", 2), ("target_oracle", 2),
    ]  # fmt: skip
    words = " ".join(stages["ada_bn", 2].words())
    assert "--model.init_args.source_checkpoint out/source_training/seed2/selected.ckpt" in words


def test_a_stage_is_a_command_that_can_be_typed(tmp_path):
    stage = stage_of(tmp_path / "c.yaml", "source_only", 3, "runs/x")
    assert " ".join(stage.words("logger/wandb.yaml")) == (
        "streets/source_only --seed_everything 3 "
        "--model.init_args.source_checkpoint runs/x/source_training/seed3/selected.ckpt "
        "--out runs/x/source_only/seed3 --trainer.logger logger/wandb.yaml"
    )


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "expected"),
    [("source_only", False), ("ada_bn", True), ("ada_bn+online", False), ("tent", True), ("tent+online", False)],
)
def test_the_class_says_whether_there_is_something_to_fit(tmp_path, name, expected):
    assert has_fit(stage_of(tmp_path / "c.yaml", name)) is expected


def test_experiments_that_need_each_other_are_refused(tiny_benchmark):
    (tiny_benchmark / "source_training.yaml").write_text("source: ada_bn\n")
    with pytest.raises(UserError, match="in a circle: ada_bn → source_training → ada_bn"):
        stage_of(Path("c.yaml"), "ada_bn", benchmark="tiny")


@pytest.fixture
def tiny_benchmark(tmp_path, monkeypatch):
    """Configs of a benchmark of one's own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiment/tiny"
    folder.mkdir(parents=True)
    (folder / "data.yaml").write_text("class_path: D\n")
    (folder / "base.yaml").write_text("seed_everything: 1\ndata: data.yaml\n")
    (folder / "source_training.yaml").write_text("{}")
    (folder / "ada_bn.yaml").write_text("source: source_training\nmodel: {init_args: {alpha: 1.0}}\n")
    return folder


def settings(name="ada_bn", seed=1, out="out", **content):
    return stage_of(Path("c.yaml"), name, seed, out, benchmark="tiny", **content).settings()


@pytest.mark.parametrize("out", ["out", "runs", "/somewhere/else", ".", "a folder/of runs", "selected", "tiny"])
def test_settings_are_those_of_any_folder(tiny_benchmark, out):
    options = {"data": {"init_args": {"target": {"root": "data/streets"}, "scale": [0.5, 1.5]}}}
    assert settings(out=out, options=options) == settings(out="runs/tiny/compare", options=options)


@pytest.mark.parametrize("file", ["data.yaml", "ada_bn.yaml"])
def test_settings_are_others_for_other_classes(tiny_benchmark, file):
    options = {"init_args": {"target": {"classes": "classes.yaml"}, "score_classes": "elsewhere.yaml"}}
    content = {"class_path": "D", **options} if file == "data.yaml" else {"data": options}
    (tiny_benchmark / file).write_text(yaml.safe_dump(content))
    seen = []
    for names in ("[road, car]", "[car, road]"):
        Path("classes.yaml").write_text(f"names: {names}\n")
        seen.append(settings())
    assert seen[0] != seen[1]


def test_settings_are_others_for_other_values_and_not_for_another_wording(tiny_benchmark):
    def size(width):
        return {"data": {"init_args": {"size": [32, width]}}}

    seen = [settings(), settings(seed=2), settings(options=size(64)), settings(options=size(65))]
    for changed, more in (
        ("base.yaml", "trainer: {max_epochs: 2}\n"),
        ("data.yaml", "init_args: {crop: [1, 2]}\n"),
        ("ada_bn.yaml", "trainer: {max_epochs: 3}\n"),
    ):
        with (tiny_benchmark / changed).open("a") as file:
            file.write(more)
        seen.append(settings())
    assert all(one != other for number, one in enumerate(seen) for other in seen[:number])
    with (tiny_benchmark / "ada_bn.yaml").open("a") as file:
        file.write("# a remark\n")
    (tiny_benchmark / "source_training.yaml").write_text("trainer: {max_epochs: 9}\n")  # a stage of its own
    assert settings() == seen[-1]


def test_a_run_with_weights_keeps_its_settings(tiny_benchmark):
    stage = stage_of(Path("c.yaml"), "ada_bn", benchmark="tiny")
    stage.run.claim({"config": {}})
    stage.run.check(stage.settings())  # nothing is lost where there are no weights
    stage.run.claim(stage.settings())
    stage.run.last.touch()
    stage.run.check(stage.settings())
    (tiny_benchmark / "ada_bn.yaml").write_text("source: source_training\nmodel: {init_args: {alpha: 0.5}}\n")
    with pytest.raises(UserError, match=r"the first being config\.model\.init_args\.alpha: give another --out"):
        stage.run.check(stage.settings())


def test_a_run_of_an_older_version_goes_on_where_its_config_agrees(tiny_benchmark):
    """It has no settings.json, and its config.yaml names every option of every class."""
    stage = stage_of(Path("c.yaml"), "ada_bn", benchmark="tiny")
    config = stage.settings()["config"]
    config["model"]["init_args"] |= {"source_checkpoint": "old/place/source_training/seed1/selected.ckpt", "x": 1}
    stage.run.folder.mkdir(parents=True)
    stage.run.last.touch()
    (stage.run.folder / "settings.sha256").write_text("0")
    stage.run.config_file.write_text(yaml.safe_dump({**config, "trainer": {"callbacks": None}}))
    stage.run.check(stage.settings())
    config["model"]["init_args"]["alpha"] = 0.7
    stage.run.config_file.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"the first being model\.init_args\.alpha"):
        stage.run.check(stage.settings())


def test_options_reach_every_stage(tmp_path):
    options = {"data": {"init_args": {"crop": [32, 64], "size": None, "source": {"layout": "synthia"}}}}
    comparison = read_comparison(write_comparison(tmp_path / "c.yaml", options=options))
    words = "--data.init_args.crop '[32, 64]' --data.init_args.size null --data.init_args.source.layout synthia"
    for stage in plan(comparison, tmp_path).values():
        assert words in shlex.join(stage.words())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"experiments": []}, "at least one"),
        ({"experiments": ["ada_bn", "ada_bn"]}, "none twice"),
        ({"seeds": ["one"]}, "list of int"),
        ({"experiments": "ada_bn"}, "list of str"),
        ({"nonsense": 1}, "has the keys"),
        ({"options": ["--seed_everything", "2"]}, "`options` must be nested"),
        ({"experiments": ["ada_bm"]}, "did you mean"),
        ({"benchmark": "streetz"}, "neither a file here"),
    ],
)
def test_a_wrong_compare_file_is_explained(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        plan(read_comparison(write_comparison(tmp_path / "c.yaml", **content)), tmp_path)


def test_table_shows_mean_and_deviation_over_seeds():
    values = [0.30, 0.36, 0.42]
    text = printed([row("x", seed, miou) for seed, miou in enumerate(values)] + [row("y", 0, None)])
    mean, deviation = f"{100 * statistics.fmean(values):.1f}", f"±{100 * statistics.stdev(values):.1f}"
    assert (mean, deviation) == ("36.0", "±6.0")
    lines = text.splitlines()
    above = next(number for number, line in enumerate(lines) if mean in line)
    assert lines[above + 1].index(deviation) + len(deviation) == lines[above].index(mean) + len(mean)  # aligned
    assert "3 seeds" in text
    assert text.index(" x ") < text.index(" y ")
    assert "–" in next(line for line in text.splitlines() if " y " in line)


def test_one_seed_has_no_deviation():
    text = printed([row("x", 1, 0.5)])
    assert "50.0" in text
    assert "±" not in text


def test_a_verdict_cuts_no_number_in_a_narrow_terminal():
    scores = {"target_classwise_ece": 0.123, "source_miou": 0.456, "adapt_seconds": 1234.0, "verdict": "cannot tell"}
    text = printed([row("ada_bn+alpha_1", 1, 0.5, **scores)], width=80)
    assert {"12.3", "45.6", "1234", "cannot", "tell", "verdict"} <= set(text.split())


def test_a_compare_file_chooses_its_columns(tmp_path):
    path = write_comparison(tmp_path / "c.yaml", columns=["target_nll", "target_iou_road", "source_ece", "method"])
    columns = read_comparison(path).columns
    console = Console(file=StringIO(), width=200)
    console.print(as_table([row("x", 1, 0.5, target_nll=1.23456, target_iou_road=0.5, source_ece=0.25)], columns))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["x", "yes", "none", "1.235", "50.0", "25.0", "M"] in lines
    assert "iou" in console.file.getvalue()
    assert "mIoU" not in console.file.getvalue()


def test_a_column_that_no_run_can_have_is_found_before_any_run(tmp_path):
    with pytest.raises(UserError, match=r"column tarket_miou: .*did you mean target_miou"):
        read_comparison(write_comparison(tmp_path / "c.yaml", columns=["tarket_miou"]))


def test_a_column_that_no_run_has_is_said_and_costs_nothing():
    rows = [row("x", 1, 0.5)]
    (remark,) = unknown_columns(rows, ["target_miou", "target_mioux"])
    assert remark.startswith("column target_mioux: no run has such a score; did you mean target_miou")


def test_results_are_flat_rows(tmp_path):
    rows = [row("x", 1, 0.5), row("y", 1, None, extra=1)]
    write_results(rows, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    with (tmp_path / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [line["experiment"] for line in read] == ["x", "y"]
    assert read[1]["target_miou"] == ""


def test_a_logger_is_given_to_runs_that_begin_and_is_no_setting(tiny_benchmark, monkeypatch):
    called = []

    def finish(console, words, *_, **__):
        called.append(words)
        stage.run.row_file.write_text("{}")

    monkeypatch.setattr("sfda.runs.engine.run_sfda", finish)
    stage, quiet = stage_of(Path("c.yaml"), "source_training", benchmark="tiny"), Console(quiet=True)
    for logger in (None, "logger/wandb.yaml"):
        fit(quiet, stage, "", logger)
        assert json.loads(stage.run.settings_file.read_text()) == stage.settings()
        stage.run.row_file.unlink()
    stage.run.last.touch()
    fit(quiet, stage, "", "logger/wandb.yaml")  # its config.yaml knows which loggers it had
    plain = ["fit", *stage.words()]
    resumed = ["fit", "--run", str(stage.run.folder)]
    assert called == [plain, [*plain, "--trainer.logger", "logger/wandb.yaml"], resumed]


def test_a_result_is_believed_not_an_exit_status(tiny_benchmark, monkeypatch):
    monkeypatch.setattr("sfda.runs.engine.run_sfda", lambda *_, **__: None)  # status 0, and nothing done
    stage = stage_of(Path("c.yaml"), "source_training", benchmark="tiny")
    with pytest.raises(UserError, match=r"^a fit ended without a result, .*result\.json: see its log .*log\.txt"):
        fit(Console(quiet=True), stage, "a fit")


@pytest.mark.slow
def test_compare_from_nothing_to_a_table(town, tmp_path, monkeypatch, capsys):
    """Two experiments on the tiny town, each stage a process; a second call runs nothing again."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiment/tiny"
    folder.mkdir(parents=True)
    data = {
        "class_path": "sfda.data.datamodule.DomainAdaptationDataModule",
        "init_args": {
            "source": {"layout": "gta5", "root": str(town / "gta5")},
            "target": {"layout": "cityscapes", "root": str(town / "cityscapes")},
            "batch_size": 4, "num_workers": 0, "crop": [24, 48],
        },
    }  # fmt: skip
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    (folder / "base.yaml").write_text(
        yaml.safe_dump(
            {
                "seed_everything": 1,
                "data": "data.yaml",
                "trainer": str(configs_folder() / "trainer/cpu.yaml"),
            }
        )
    )
    for name, more in (
        ("source_training", {}),
        ("source_only", {"source": "source_training"}),
        ("ada_bn", {"source": "source_training", "variants": {"alpha_1": {"model": {"init_args": {"alpha": 1.0}}}}}),
    ):
        values = {"model": {"init_args": {"network": NETWORK}}, "trainer": {"max_epochs": 1}, **more}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    path = write_comparison(tmp_path / "c.yaml", benchmark="tiny", experiments=["source_only", "ada_bn+alpha_1"])
    assert main(["compare", str(path), "--out", "runs/out", "--trainer.logger", "logger/wandb.yaml"]) == 0
    first = capsys.readouterr().out
    for experiment, runs in (("source_training", 1), ("source_only", 1), ("ada_bn+alpha_1", 2)):
        logged = [content(file) for file in Path("runs/out", experiment).glob("seed1/wandb/offline-run-*/*.wandb")]
        assert [(part["run"].run_group, part["exit"]) for part in logged] == [("out", 0)] * runs
    rows = json.loads(Path("runs/out/results.json").read_text())
    assert [r["experiment"] for r in rows] == ["source_only", "ada_bn+alpha_1"]
    keys = list(rows[0])
    assert keys[: len(HEAD)] == HEAD
    assert keys[-len(TAIL) :] == TAIL
    assert {
        "target_miou",
        "target_iou_road",
        "target_ece",
        "target_classwise_ece",
        "target_nll",
        "target_brier",
        "target_missing_classes",
        "target_mce",
        "source_ece_adaptive",
        "source_infomax",
    } <= set(keys)
    assert rows[1]["adapt_seconds"] > 0
    assert rows[1]["peak_memory_mb"] > 0
    assert "sfda fit tiny/source_training" in first
    before = Path("runs/out/ada_bn+alpha_1/seed1/selected.ckpt").stat().st_mtime_ns
    assert main(["compare", path, "--out", "runs/out"]) == 0
    second = capsys.readouterr().out
    assert second.count("finished before") == 3
    assert "$ sfda" not in second
    assert Path("runs/out/ada_bn+alpha_1/seed1/selected.ckpt").stat().st_mtime_ns == before
    (folder / "ada_bn.yaml").write_text((folder / "ada_bn.yaml").read_text().replace("alpha: 1.0", "alpha: 0.5"))
    assert main(["compare", path, "--out", "runs/out"]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sfda.runs.engine.started", lambda *_, **__: nullcontext(SimpleNamespace(output=["line\n"])))
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"log\.txt cannot be written .No space left on device"):
        run_sfda(Console(file=StringIO()), ["--version"], tmp_path / "log.txt", "a run", group="runs")
