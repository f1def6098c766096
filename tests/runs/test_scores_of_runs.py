"""What a run is judged by."""

import csv
import json

from sfda.runs.run import Run


def write(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "train/loss", "target/infomax", "target/churn"])
        writer.writeheader()
        writer.writerows(rows)


def validated(epoch, infomax, **more):
    return {"epoch": epoch, "step": 10 * epoch + 9, "target/infomax": infomax, **more}


def test_the_last_validation_counts_where_nothing_selects(tmp_path):
    last = {"epoch": 1, "step": 20, "train/loss": 0.25}
    write(tmp_path / "metrics.csv", validated(0, 0.5, **{"target/churn": 0.125}), validated(1, 0.75), last)
    assert Run(tmp_path).scores() == {"target/infomax": 0.75, "target/churn": 0.125}


def test_otherwise_the_epoch_that_was_selected(tmp_path):
    write(tmp_path / "metrics.csv", *(validated(epoch, epoch / 4) for epoch in range(3)))
    (tmp_path / "selection.json").write_text(json.dumps({"selected": {"epoch": 1}}))
    assert Run(tmp_path).scores() == {"target/infomax": 0.25}
    (tmp_path / "selection.json").write_text(json.dumps({"selected": None}))
    assert Run(tmp_path).scores() == {"target/infomax": 0.5}


def test_a_resumed_fit_has_several_files(tmp_path):
    for number in range(11):
        write(tmp_path / f"metrics.{number}.csv", validated(number, number / 4))
    write(tmp_path / "metrics.csv", {"epoch": 11, "step": 111, "train/loss": 1.0})
    assert Run(tmp_path).scores() == {"target/infomax": 2.5}
    (tmp_path / "selection.json").write_text(json.dumps({"selected": {"epoch": 3}}))
    assert Run(tmp_path).scores() == {"target/infomax": 0.75}


def test_an_empty_folder_has_no_scores(tmp_path):
    assert Run(tmp_path).scores() == {}
