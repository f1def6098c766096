"""``sfda judge`` as somebody with finished runs uses it."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfda.cli.judge import _name
from tiny_runs import tiny_arguments

pytestmark = pytest.mark.medium


@pytest.fixture
def runs(town, source_model, sfda, tmp_path):
    """The source model, and one that a high learning rate has spoilt."""
    plain = [*tiny_arguments("source_only", town, source_model), "--out", tmp_path / "source_only"]
    assert sfda("validate", *plain) == 0
    spoilt = [*tiny_arguments("tent", town, source_model), "--model.init_args.lr", "1.0", "--trainer.max_epochs", "4"]
    assert sfda("fit", *spoilt, "--out", tmp_path / "tent") == 0
    (tmp_path / "tent/selected.ckpt").unlink()
    shutil.copy(tmp_path / "tent/last.ckpt", tmp_path / "tent/selected.ckpt")  # the fit may have kept its source
    return [tmp_path / "source_only", tmp_path / "tent"]


def judged(sfda, capsys, *words) -> tuple[int, str]:
    status = sfda("judge", *words)
    captured = capsys.readouterr()
    return status, " ".join((captured.out + captured.err).split())


def test_runs_are_judged_without_labels(runs, town, sfda, capsys):
    status, said = judged(sfda, capsys, *runs, "--images", town / "cityscapes/leftImg8bit/train", "--count", 8)
    assert status == 0
    assert "without labels, 8 images" in said
    assert "source_only: cannot tell (100.0 % of the pixels keep the source's class)" in said
    assert re.search(r"tent: (worse than the source|cannot tell) \(.*second judge's classes falls", said)


def test_a_few_labels_give_the_scores_of_validate_and_an_interval(runs, town, sfda, capsys):
    assert sfda("validate", "--run", runs[1]) == 0
    images, labels = town / "cityscapes/leftImg8bit/val", town / "cityscapes/gtFine/val"
    status, said = judged(sfda, capsys, *runs, "--images", images, "--labels", labels)
    assert status == 0
    assert "6 labelled images" in said
    assert "source_only: cannot tell (+0.0 mIoU on 6 labelled images, 95 % interval +0.0 to +0.0" in said
    source, tent = (json.loads((run / "result.json").read_text())["target_miou"] for run in runs)
    assert f"source {100 * source:.1f} source_only {100 * source:.1f}" in said
    assert f"tent {100 * tent:.1f} {100 * (tent - source):+.1f}" in said


def test_labels_in_train_ids_are_known_by_their_looks_and_score_alike(runs, town, sfda, tmp_path, capsys):
    images, labels = town / "cityscapes/leftImg8bit/val", town / "cityscapes/gtFine/val"
    table = np.full(256, 255, dtype=np.uint8)
    table[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = range(19)  # Cityscapes' own
    folder = tmp_path / "labels"
    for path in labels.rglob("*_labelIds.png"):
        name = path.relative_to(labels).with_name(path.name.replace("_gtFine_labelIds", "_leftImg8bit"))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(table[np.asarray(Image.open(path))]).save(folder / name)
    words = [*runs, "--images", images, "--labels"]
    status, said = judged(sfda, capsys, *words, folder)
    assert (status, "give --label-values train_ids" in said) == (2, True), said
    known = judged(sfda, capsys, *words, folder, "--label-values", "train_ids")
    assert known == judged(sfda, capsys, *words, labels)
    assert "6 labelled images" in known[1]


def test_the_page_has_the_verdicts_of_the_table_and_every_image_of_every_model(runs, town, sfda, tmp_path, capsys):
    images, labels, page = town / "cityscapes/leftImg8bit/val", town / "cityscapes/gtFine/val", tmp_path / "page.html"
    for words, scores in (([], ["InfoMax", "second judge agrees %"]), (["--labels", labels], ["mIoU %", "ECE %"])):
        given = [*runs, "--images", images, "--out", page, *words]
        status, said = judged(sfda, capsys, *given)
        assert status == 0
        assert f"{page}: open it in a browser" in said
        text = html.unescape(page.read_text())
        seen = " ".join(re.sub(r"<[^>]*>", " ", text).split())
        for name in ("source_only", "tent"):
            word, reasons = re.search(
                rf"{name}: (better|worse|cannot tell)(?: than the source)? \((.*?)\) ?(?:tent|/)", said
            ).groups()
            assert f"{word} {name} : {reasons}" in seen
        for score in scores:
            assert score in seen
        assert "sfda judge" in seen
        views = json.loads(re.search(r'id="views">(.*?)</script>', text, re.DOTALL)[1])
        assert len(views) == 6
        assert all(view.keys() == {"source", "source_only", "tent"} for view in views)
        assert ("ground truth" in text) == bool(words)
        page.unlink()


def test_a_page_is_never_written_over_another(runs, town, sfda, tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("mine")
    status, said = judged(sfda, capsys, *runs, "--images", town / "cityscapes/leftImg8bit/val", "--out", page)
    assert status == 2
    assert f"{page} exists already" in said
    assert page.read_text() == "mine"


def test_runs_are_named_by_what_tells_them_apart():
    given = [Path("a/tent/seed1"), Path("a/tent/seed2"), Path("a/mine"), Path("b/mine")]
    assert [_name(folder, given) for folder in given] == ["tent/seed1", "tent/seed2", "a/mine", "b/mine"]


def test_what_cannot_be_compared_is_refused(runs, town, sfda, tmp_path, capsys):
    images = town / "cityscapes/leftImg8bit/train"
    other = shutil.copytree(runs[1], tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("size: null", "size: [16, 32]"))
    for words, message in (
        ([tmp_path / "none", "--images", images], "not a run folder"),
        ([runs[1], "--images", tmp_path / "none"], "none: no such folder"),
        ([runs[1], other, "--images", images], "has data.size [16, 32]"),
        ([runs[1], "--images", images, "--count", 1], "--count 1: at least 2"),
        ([runs[1], "--images", images, "--labels", tmp_path], "named like an image"),
    ):
        status, said = judged(sfda, capsys, *words)
        assert (status, message in said) == (2, True), said


@pytest.mark.parametrize("size", ["null", "[24, 48]"])
def test_networks_that_pool_globally_have_a_second_judge(size, town, sfda, tmp_path, capsys):
    network = ["--model.init_args.network", "tiny_network.build_with_pooling"]
    assert sfda("fit", *tiny_arguments("source_training", town), *network, "--out", tmp_path / "source") == 0
    start = tmp_path / "source/selected.ckpt"
    more = [*network, "--data.init_args.size", size]
    assert sfda("validate", *tiny_arguments("source_only", town, start), *more, "--out", tmp_path / "run") == 0
    images = town / "cityscapes/leftImg8bit/val"
    status, said = judged(sfda, capsys, tmp_path / "run", "--images", images)
    assert status == 0
    assert "run: cannot tell (100.0 % of the pixels keep the source's class)" in said


def test_images_that_cannot_be_read_are_named_and_left_out(runs, town, sfda, tmp_path, capsys):
    images = shutil.copytree(town / "cityscapes/leftImg8bit/val", tmp_path / "images")
    cut, damaged = sorted(images.rglob("*.png"))[:2]
    cut.write_bytes(cut.read_bytes()[:-400])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    status, said = judged(sfda, capsys, runs[0], "--images", images)
    assert status == 0
    assert said.count("✗") == 2
    assert f"✗ {cut}" in said
    assert "without labels, 4 images" in said
    status, said = judged(sfda, capsys, runs[0], "--images", images, "--labels", town / "cityscapes/gtFine/val")
    assert (status, said.count("✗"), "4 labelled images" in said) == (0, 2, True), said
