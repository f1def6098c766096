"""The one picture of a comparison."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sfda.cli.main import main
from sfda.errors import UserError
from sfda.runs.comparison import _point_on, _prepare
from sfda.runs.image_records import NAME, Records
from sfda.runs.side_by_side import draw_side_by_side

IMAGE, TRUTH = (10, 20, 30), (250, 240, 1)
PREDICTIONS = [(200, 10 * number, 3) for number in range(7)]


def rows_with_panels(folder, experiments, seeds=(1,)):
    rows = []
    for seed in seeds:
        for number, experiment in enumerate(experiments):
            run = folder / experiment / f"seed{seed}"
            run.mkdir(parents=True)
            colours = {"image": IMAGE, "truth": TRUTH, "prediction": PREDICTIONS[number + 3 * (seed - 1)]}
            pictures = {f"{i}": {kind: encode(colour) for kind, colour in colours.items()} for i in range(4)}
            Records({}, list(pictures), None, np.zeros((4, 19)), np.zeros(4), pictures=pictures).write(run / NAME)
            scores = {"target_miou": 0.2, "target_ece": 0.01, "adapt_seconds": 1.0, "labels_read": None}
            of_run = {"experiment": experiment, "seed": seed, "config": str(run / "config.yaml"), "source_free": True}
            rows.append({**of_run, **scores, "class_set": "cityscapes19"})
    return rows


def encode(colour):
    file = io.BytesIO()
    Image.new("RGB", (16, 8), colour).save(file, "png")
    return file.getvalue()


def colours_of(picture):
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(colour) for colour, count in zip(found.tolist(), counts, strict=True) if count > 1000}


def test_image_truth_and_what_every_experiment_predicts_stand_side_by_side(tmp_path):
    picture = draw_side_by_side(rows_with_panels(tmp_path, ["a", "b"], seeds=(1, 2)), tmp_path)
    seen = colours_of(picture)
    assert {IMAGE, TRUTH, *PREDICTIONS[:2]} <= seen
    assert not set(PREDICTIONS[2:]) & seen  # those of the other seed


def test_five_experiments_are_drawn_and_runs_without_panels_left_out(tmp_path):
    rows = rows_with_panels(tmp_path, list("abcdefg"))
    (tmp_path / "b/seed1/images_target.zip").unlink()
    drawn = set(PREDICTIONS) & colours_of(draw_side_by_side(rows, tmp_path))
    assert drawn == {PREDICTIONS[number] for number in (0, 2, 3, 4)}


def test_without_panels_there_is_no_picture(tmp_path):
    rows = rows_with_panels(tmp_path, ["a"])
    (tmp_path / "a/seed1/images_target.zip").unlink()
    assert draw_side_by_side(rows, tmp_path) is None
    assert not (tmp_path / "side_by_side.png").exists()


def test_a_comparison_ends_with_a_picture_to_open_and_a_command_to_type(tmp_path, capsys):
    rows = rows_with_panels(tmp_path, ["source_only", "tent", "oracle"])
    rows[0]["adapt_seconds"] = None
    rows[2]["labels_read"] = "target"
    _point_on(Console(width=500), rows, tmp_path)
    picture, command = capsys.readouterr().out.splitlines()
    assert picture.startswith(f"Open {tmp_path}/side_by_side.png")
    assert f"predict --run {tmp_path}/tent/seed1 --images YOUR_PHOTOGRAPHS" in command


def test_what_cannot_be_prepared_stops_a_comparison(capsys):
    with pytest.raises(UserError, match="`sfda nothing` failed"):
        _prepare(Console(quiet=True), "nothing", main)
    assert "unknown command" in capsys.readouterr().err
