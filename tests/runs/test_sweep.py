"""The local engine, its fits played by a function."""

import csv
import json
from io import StringIO

import pytest
import yaml
from rich.console import Console

from sfda.cli.main import main
from sfda.errors import UserError
from sfda.files import WriteError
from sfda.runs.sweep import sweep
from sfda.runs.tables import as_ranking, ranked


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "method": "grid",
        "metric": {"name": "target/infomax", "goal": "maximize"},
        "parameters": {"model.init_args.alpha": {"values": [0.1, 0.2, 0.3]}},
        "command": ["sfda", "fit", "streets/ada_bn", "${args}"],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mine.yaml"


@pytest.fixture
def fits(monkeypatch):
    """The trials that were fitted; `fits.broken` names those that fail, `fits.scores` gives their scores."""

    class Fits(list):
        broken = ()
        checked = 0
        logger = None

        def scores(self, alpha):
            return {"target/infomax": {0.1: 0.5, 0.2: 0.9, 0.3: 0.7}[alpha], "target/class_coverage": alpha}

    played = Fits()

    def fit(console, stage, title, logger):
        played.logger = logger
        number, folder = int(stage.name.removeprefix("trial-")), stage.run.folder
        if stage.run.is_finished:
            return
        played.append(number)
        stage.run.claim(stage.settings())
        if number in played.broken:
            raise UserError(f"trial {number} broke")
        scores = played.scores(stage.settings()["config"]["model"]["init_args"]["alpha"])
        with (folder / "metrics.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["epoch", *scores])
            writer.writeheader()
            writer.writerow({"epoch": 0, **scores})
        stage.run.write_row({"adapt_seconds": 12.3})

    def check(console, trial):
        played.checked += 1

    monkeypatch.setattr("sfda.runs.sweep.fit", fit)
    monkeypatch.setattr("sfda.runs.sweep._check_options", check)
    return played


def test_trials_are_run_ranked_and_written_down(file, fits, capsys):
    assert sweep(str(file)) == 0
    assert fits == [1, 2, 3]
    rows = json.loads((file.parent / "runs/sweep/mine/results.json").read_text())
    assert [row["trial"] for row in rows] == [1, 2, 3]
    assert rows[1] == {
        "trial": 2, "folder": "runs/sweep/mine/trial-2", "status": "finished",
        "parameters": {"model.init_args.alpha": 0.2}, "objective": "target/infomax", "value": 0.9, "seconds": 12.3,
        "scores": {"target/infomax": 0.9, "target/class_coverage": 0.2},
    }  # fmt: skip
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line[:1] in (["1"], ["2"], ["3"])] == [
        ["2", "0.9000", "0.2000", "12", "alpha=0.2"], ["3", "0.7000", "0.3000", "12", "alpha=0.3"],
        ["1", "0.5000", "0.1000", "12", "alpha=0.1"],
    ]  # fmt: skip


def test_what_is_finished_is_not_run_again_and_more_trials_are_added(file, fits):
    assert sweep(str(file), 2) == 0
    assert sweep(str(file), 2) == 0
    assert (fits, fits.checked) == ([1, 2], 1)  # with nothing to run there is nothing to check
    assert sweep(str(file)) == 0
    assert (fits, fits.checked) == ([1, 2, 3], 2)


def test_a_failed_trial_is_reported_stops_nothing_and_is_tried_again(file, fits, capsys):
    fits.broken = (1,)
    assert sweep(str(file)) == 1
    assert fits == [1, 2, 3]
    printed = capsys.readouterr().out
    assert "trial 1 broke" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.split()[:1] == ["1"]] == ["failed"]
    rows = json.loads((file.parent / "runs/sweep/mine/results.json").read_text())
    assert [row["status"] for row in rows] == ["failed", "finished", "finished"]
    file.write_text(file.read_text().replace("0.1", "0.3").replace("- 0.3", "- 0.1", 1))
    fits.broken = ()
    assert sweep(str(file)) == 0
    assert fits == [1, 2, 3, 1]


def test_a_folder_that_cannot_be_written_stops_all_trials(file, monkeypatch):
    monkeypatch.setattr("sfda.runs.sweep._check_options", lambda *_: None)
    out = file / "out"  # below a file
    with pytest.raises(WriteError, match=f"{out}/trial-1/settings.json cannot be written .Not a directory"):
        sweep(str(file), out=out)


def test_a_finished_trial_never_becomes_another(file, fits):
    sweep(str(file))
    file.write_text(file.read_text().replace("0.2", "0.25"))
    with pytest.raises(UserError, match=r"trial-2 was run .* being config\.model\.init_args\.alpha: give"):
        sweep(str(file))
    assert sweep(str(file), out=file.parent / "elsewhere", trials=1) == 0


def test_an_objective_that_is_not_logged_is_explained(file, fits, capsys):
    file.write_text(file.read_text().replace("target/infomax", "target/miou"))
    assert sweep(str(file)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "target/miou was not logged by any fit; what was: target/infomax, target/class_coverage" in printed


def test_the_smallest_comes_first_where_it_is_minimised():
    rows = [
        {"trial": number, "value": value, "status": status, "parameters": {"model.init_args.alpha": 1e-5 / 3},
         "seconds": None, "scores": {}, "objective": "target/infomax"}
        for number, value, status in (
            (1, None, "failed"), (2, 3.0, "finished"), (3, None, "finished"), (4, -1.0, "finished"),
        )
    ]  # fmt: skip
    assert [row["trial"] for row in ranked(rows, maximised=False)] == [4, 2, 3, 1]
    console = Console(file=StringIO(), width=100)
    console.print(as_ranking("mine", rows, ["model.init_args.alpha"], maximised=False))
    assert "smallest target/infomax first" in console.file.getvalue()
    assert "3.33e-06" in console.file.getvalue()


def test_equal_last_names_are_shown_whole(file, fits, capsys):
    content = yaml.safe_load(file.read_text())
    content["parameters"]["data.init_args.alpha"] = {"value": 7}
    file.write_text(yaml.safe_dump(content))
    sweep(str(file))
    printed = capsys.readouterr().out
    assert "model.init_args.alpha=0.1" in printed
    assert "data.init_args.alpha=7" in printed


@pytest.mark.parametrize("trials", ["0", "-1", "many"])
def test_the_number_of_trials_is_a_number(file, trials, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", str(file), "--trials", trials])
    assert "no number of trials" in capsys.readouterr().err


def test_the_command_line_hands_everything_on(file, fits):
    words = ["--trials", "2", "--out", "there", "--seed", "4", "--trainer.logger", "logger/wandb.yaml"]
    assert main(["sweep", str(file), *words]) == 0
    assert fits == [1, 2]
    assert fits.logger == "logger/wandb.yaml"
    assert (file.parent / "there/trial-2/result.json").exists()


def test_a_mistake_in_the_file_is_a_sentence(file, capsys):
    file.write_text(file.read_text().replace("grid", "bayes"))
    assert main(["sweep", str(file), "--trials", "2"]) == 2
    assert capsys.readouterr().err.startswith(f"sfda: {file}: method bayes")
