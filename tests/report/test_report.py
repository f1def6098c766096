"""The one HTML file about runs side by side."""

import html.parser
import io
import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from scored_runs import CLASSES, NAMES, TITLE, make_run
from sfda.cli.main import main
from sfda.data.label_spaces import CITYSCAPES19
from sfda.errors import UserError
from sfda.judging.bootstrap import mean_iou
from sfda.report.entries import gather
from sfda.report.figures import risk_coverage
from sfda.report.page import render, write_report
from sfda.report.pictures import boundary_iou, choose_images, draw_errors
from sfda.runs.image_records import NAME, Records, draw_pictures


class Page(html.parser.HTMLParser):
    """Tags, addresses, and texts of table cells."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, "source_only", 0.6, method="SourceOnly")
    for seed in (1, 2):
        make_run(tmp_path, "good", 0.9, seed, verdict="better")
    make_run(tmp_path, "same", 0.6, 3)
    make_run(tmp_path, "bad", 0.3, verdict="worse")
    return tmp_path


def test_the_page_is_one_file_that_asks_for_nothing_else(runs):
    text = write_report([runs], runs / "report.html", title=TITLE).read_text()
    page = Page(text)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)|fetch\(|https?://(?!www\.w3\.org|purl\.org|creativecommons)", text)
    assert "<script>alert" not in text
    assert len(text) < 3e6


def test_verdicts_are_paired_intervals_and_zero_is_said_in_words(runs):
    text = render(gather([runs]), "runs")
    tagged = re.findall(r'class="tag (\w+)">([\w ]+)</span>\s*<strong>(\w+)</strong>: ([^<]+)', text)
    assert {name: word for _, word, name, _ in tagged} == {"good": "better", "same": "cannot tell", "bad": "worse"}
    assert "which includes zero" in next(why for *_, name, why in tagged if name == "same")
    findings = gather([runs])
    good = next(entry for entry in findings.entries if entry.name == "good")
    interval = good.interval(findings.source)
    pooled = mean_iou(sum(good.confusion.values())) - mean_iou(sum(findings.source.confusion.values()))
    assert interval.difference == pytest.approx(float(pooled))
    assert f"{100 * pooled:+.1f} mIoU" in next(why for *_, name, why in tagged if name == "good")


def test_seeds_are_one_row_with_mean_and_deviation(runs):
    findings = gather([runs])
    good = next(entry for entry in findings.entries if entry.name == "good")
    values = [json.loads((runs / f"good/seed{seed}/result.json").read_text())["target_miou"] for seed in (1, 2)]
    assert good.mean("target_miou") == pytest.approx(np.mean(values))
    pixels = sum(records.confusion.sum() for records in good.records)
    assert sum(matrix.sum() for matrix in good.confusion.values()) == pixels == 2 * len(NAMES) * 12 * 24
    text = render(findings, "runs")
    assert f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}" in text
    assert text.count("<tr>") >= 5


def test_without_labels_the_page_has_the_verdicts_of_the_fits_and_what_changed(tmp_path):
    make_run(tmp_path, "source_only", 0.6, method="SourceOnly", labelled=False)
    run = make_run(tmp_path, "good", 0.9, verdict="better", labelled=False)
    (run / "selection.json").write_text(json.dumps({"verdict": "better", "reasons": ["InfoMax rises"]}))
    text = render(gather([tmp_path]), "runs")
    assert "without labels: InfoMax rises" in text
    assert "most changed" in text
    assert "worst: mIoU" not in text
    assert "IoU per class" not in text
    assert "IoU" not in re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)


def test_images_are_the_worst_and_the_most_changed(runs):
    findings = gather([runs])
    chosen = choose_images(findings)
    assert len(chosen) == 12
    adapted = [entry for entry in findings.entries if entry.name != "source_only"]
    quality = {name: np.mean([entry.image_iou(name) for entry in adapted]) for name in NAMES}
    assert list(chosen)[:6] == sorted(NAMES, key=quality.get)[:6]
    assert all(why.startswith("most changed") for why in list(chosen.values())[6:])


def test_errors_are_right_wrong_and_ignored():
    truth, prediction = np.array([[0, 1, 255]], np.uint8), np.array([[0, 2, 1]], np.uint8)
    picture = Image.open(io.BytesIO(draw_errors(prediction, truth)))
    assert np.asarray(picture).tolist() == [[0, 1, 2]]


def test_risk_is_the_share_of_errors_among_the_most_confident():
    bins = np.array([[4.0, 0.0, 6.0], [0, 0, 0], [1.0, 0.0, 6.0]])
    coverage, risk = risk_coverage(bins)
    assert coverage.tolist() == pytest.approx([0.6, 0.6, 1.0])
    assert risk.tolist() == pytest.approx([0.0, 0.0, 0.3])


def test_boundary_iou_is_1_for_the_truth_and_punishes_a_shifted_contour(tmp_path):
    square = np.zeros((40, 80), np.uint8)
    square[10:30, 20:60] = 1
    shifted = np.roll(square, 2, axis=1)
    scores = {}
    for name, prediction in (("truth", square), ("shifted", shifted)):
        run = make_run(tmp_path / name, "run", 0.5)
        panels = {"image": np.zeros((40, 80, 3), np.uint8), "confidence": square, "truth": square}
        pictures = {"one": draw_pictures({**panels, "prediction": prediction}, CITYSCAPES19)}
        Records(CLASSES, ["one"], None, np.ones((1, 19)), np.zeros(1), pictures=pictures).write(run / NAME)
        scores[name] = boundary_iou(gather([tmp_path / name]).entries[0])
    assert scores["truth"] == 1
    whole = np.mean([((square == c) & (shifted == c)).sum() / ((square == c) | (shifted == c)).sum() for c in (0, 1)])
    assert scores["shifted"] < whole


def test_what_cannot_be_reported_is_said(runs, tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="score runs with `sfda validate --run FOLDER` first"):
        gather([tmp_path / "empty"])
    make_run(tmp_path, "other", 0.5, class_set="synthia16")
    with pytest.raises(UserError, match="score other classes"):
        gather([tmp_path])


def test_progress_counts_every_run_and_every_experiment(runs):
    shown = {}

    @contextmanager
    def show(title, total):
        done = []
        yield done.append
        shown[title] = (total, sum(done))

    found = len(list(runs.rglob("result.json")))
    write_report([runs], runs / "again.html", title="", show_progress=show)
    assert shown == {"reading runs": (found, found), "comparing with the source model": (found - 1, found - 1)}


def test_the_command_writes_a_file_and_never_over_another(runs, capsys):
    out = runs / "page.html"
    assert main(["report", str(runs / "good"), str(runs / "bad"), "--out", str(out)]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    assert "good, bad" in out.read_text()
    assert main(["report", str(runs / "good"), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
