import csv
import json
import statistics
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from sfda.cli import main
from sfda.compare.plan import make_stage, plan, read_comparison
from sfda.compare.run import compare, fit, run_sfda
from sfda.compare.table import as_table, write_results
from sfda.errors import UserError
from sfda.files import WriteError
from tiny_runs import NETWORK
from wandb_files import content

HEAD = ["experiment", "method", "seed", "source", "target", "class_set", "views", "network", "source_free"]
HEAD += ["labels_read", "selected_by", "selected_step"]
TAIL = ["source_miou", "source_ece", "adapt_seconds", "peak_memory_mb", "trained_parameters", "version"]
TAIL += ["git_commit", "config"]


def row(experiment, seed, miou, **more):
    return {
        "experiment": experiment, "method": "M", "seed": seed, "source": "a", "target": "b", "class_set": "c",
        "views": "single", "source_free": True, "labels_read": None, "target_miou": miou, "target_ece": 0.05,
        "adapt_seconds": None, **more,
    }  # fmt: skip


def printed(rows):
    console = Console(file=StringIO(), width=200)
    console.print(as_table(rows))
    return console.file.getvalue()


def write_comparison(path, **content):
    path.write_text(yaml.safe_dump({"benchmark": "streets", "seeds": [1], "experiments": ["ada_bn"], **content}))
    return str(path)


def test_dependencies_come_first_and_once(tmp_path):
    comparison = read_comparison(
        write_comparison(tmp_path / "c.yaml", experiments=["ada_bn", "target_oracle"], seeds=[1, 2])
    )
    stages = plan(comparison, Path("out"))
    assert [(stage.experiment, stage.seed) for stage in stages] == [
        ("source_training", 1), ("ada_bn", 1), ("target_oracle", 1),
        ("source_training", 2), ("ada_bn", 2), ("target_oracle", 2),
    ]  # fmt: skip
    assert "--model.init_args.source_checkpoint out/source_training/seed2/selected.ckpt" in stages[4].command()


def test_a_stage_is_a_command_that_can_be_typed():
    stage = make_stage("streets", "source_only", 3, Path("runs/x"))
    assert stage.command("validate") == (
        "sfda validate streets/source_only --seed_everything 3 --out runs/x/source_only/seed3 "
        "--model.init_args.source_checkpoint runs/x/source_training/seed3/selected.ckpt"
    )
    assert not stage.fitted
    assert make_stage("streets", "ada_bn", 3, Path("runs/x")).fitted


@pytest.fixture
def tiny_benchmark(tmp_path, monkeypatch):
    """Configs of a benchmark of one's own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiment/tiny"
    folder.mkdir(parents=True)
    (folder / "data.yaml").write_text("class_path: D\n")
    (folder / "base.yaml").write_text("seed_everything: 1\ndata: data.yaml\n")
    checkpoint = "runs/tiny/source_training/seed1/selected.ckpt"
    for name, values in (("source_training", {}), ("ada_bn", {"source_checkpoint": checkpoint, "alpha": 1.0})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": {"init_args": values}}))
    return folder


@pytest.mark.parametrize("out", ["out", "runs", "/somewhere/else", ".", "a folder/of runs", "selected", "tiny"])
def test_a_fingerprint_is_that_of_any_folder(tiny_benchmark, out):
    options = ("--data.init_args.target.root", "data/streets", "--data.init_args.scale", "[0.5, 1.5]")
    known = make_stage("tiny", "ada_bn", 1, Path("runs/tiny/compare"), options)
    assert make_stage("tiny", "ada_bn", 1, Path(out), options).fingerprint() == known.fingerprint()


@pytest.mark.parametrize("file", ["data.yaml", "ada_bn.yaml"])
def test_a_fingerprint_is_another_for_other_classes(tiny_benchmark, file):
    content = {"class_path": "D"} if file == "data.yaml" else {"model": {"init_args": {}}}
    target = {"target": {"classes": "classes.yaml"}, "score_classes": "elsewhere.yaml"}
    (tiny_benchmark / file).write_text(yaml.safe_dump({**content, "data": {"init_args": target}}))
    seen = set()
    for names in ("[road, car]", "[car, road]"):
        Path("classes.yaml").write_text(f"names: {names}\n")
        seen.add(make_stage("tiny", "ada_bn", 1, Path("out")).fingerprint())
    assert len(seen) == 2


def test_a_fingerprint_is_another_for_other_settings(tiny_benchmark):
    def fingerprint(seed=1, options=()):
        return make_stage("tiny", "ada_bn", seed, Path("out"), options).fingerprint()

    seen = {fingerprint()}
    assert fingerprint() in seen
    seen |= {fingerprint(seed=2), fingerprint(options=("--data.init_args.size", "[32, 64]"))}
    seen.add(fingerprint(options=("--data.init_args.size", "[32, 65]")))
    for changed in ("base.yaml", "data.yaml", "ada_bn.yaml"):
        with (tiny_benchmark / changed).open("a") as file:
            file.write("trainer: {max_epochs: 2}\n")
        seen.add(fingerprint())
    assert len(seen) == 7
    (tiny_benchmark / "source_training.yaml").write_text("{}\n")  # a stage of its own
    assert fingerprint() in seen


def test_options_reach_every_stage(tmp_path):
    options = {"data": {"init_args": {"crop": [32, 64], "size": None, "source": {"layout": "synthia"}}}}
    comparison = read_comparison(write_comparison(tmp_path / "c.yaml", options=options))
    words = "--data.init_args.crop '[32, 64]' --data.init_args.size null --data.init_args.source.layout synthia"
    for stage in plan(comparison, tmp_path):
        assert words in stage.command()


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
    monkeypatch.setattr("sfda.compare.run.run_sfda", lambda console, words, *_, **__: called.append(words))
    stage, quiet = make_stage("tiny", "source_training", 1, Path("out")), Console(quiet=True)
    for logger in (None, "logger/wandb.yaml"):
        fit(quiet, stage, "", logger)
        assert (stage.folder / "settings.sha256").read_text().strip() == stage.fingerprint()
    (stage.folder / "last.ckpt").touch()
    fit(quiet, stage, "", "logger/wandb.yaml")  # its config.yaml knows which loggers it had
    plain = ["fit", *stage.arguments]
    resumed = ["fit", "--run", str(stage.folder)]
    assert called == [plain, [*plain, "--trainer.logger", "logger/wandb.yaml"], resumed]


@pytest.mark.slow
def test_compare_from_nothing_to_a_table(town, tmp_path, monkeypatch, capsys):
    """Two experiments on the tiny town, each stage a process; a second call runs nothing again."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiment/tiny"
    folder.mkdir(parents=True)
    import sfda.arguments

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
                "trainer": str(sfda.arguments.configs_folder() / "trainer/cpu.yaml"),
            }
        )
    )
    checkpoint = "runs/tiny/source_training/seed1/selected.ckpt"
    for name, values in (
        ("source_training", {}),
        ("source_only", {"source_checkpoint": checkpoint}),
        ("ada_bn+alpha_1", {"source_checkpoint": checkpoint, "alpha": 1.0}),
    ):
        override = {"model": {"init_args": {"network": NETWORK, **values}}, "trainer": {"max_epochs": 1}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(override))
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
    } <= set(keys)
    assert rows[1]["adapt_seconds"] > 0
    assert rows[1]["peak_memory_mb"] > 0
    assert "sfda fit tiny/source_training" in first
    before = Path("runs/out/ada_bn+alpha_1/seed1/selected.ckpt").stat().st_mtime_ns
    assert compare(path, Path("runs/out")) == 0
    second = capsys.readouterr().out
    assert second.count("finished before") == 2
    assert "$ sfda" not in second
    assert Path("runs/out/ada_bn+alpha_1/seed1/selected.ckpt").stat().st_mtime_ns == before
    (folder / "ada_bn+alpha_1.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"network": NETWORK, "source_checkpoint": checkpoint, "alpha": 0.5}}})
    )
    with pytest.raises(UserError, match="other settings"):
        compare(path, Path("runs/out"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sfda.compare.run.started", lambda *_, **__: nullcontext(SimpleNamespace(output=["line\n"])))
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"log\.txt cannot be written .No space left on device"):
        run_sfda(Console(file=StringIO()), ["--version"], tmp_path / "log.txt", "a run", group="runs")
