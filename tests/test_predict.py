"""`sfda predict`: what it writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sfda.cli import predict_windows
from sfda.cli.predict import _jobs, label_ids_of
from sfda.cli.predict_windows import label_image, window_shares, window_starts
from sfda.data.label_spaces import CITYSCAPES19, SYNTHIA13, SYNTHIA16, load_class_set
from sfda.errors import UserError
from sfda.methods.source_training import SourceTraining

pytestmark = pytest.mark.medium
SIZES = {"a.png": (32, 64), "deep/er/b.jpg": (37, 51), "deep/c.PNG": (40, 30)}


@pytest.fixture
def photos(tmp_path, town) -> Path:
    """Crops and enlargements of the town, of three sizes, in nested folders."""
    paths = sorted((town / "cityscapes/leftImg8bit/val").rglob("*.png"))
    for (name, (height, width)), source in zip(SIZES.items(), paths, strict=False):
        target = tmp_path / "photos" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).resize((width, height)).save(target)
    return tmp_path / "photos"


@pytest.fixture
def predict(sfda, source_model, photos, tmp_path, capsys):
    """Runs `predict` on the photos; gives the exit status and what was printed."""

    def run(*more: object, run: Path = source_model.parent, images: Path = photos, out: Path | None = None):
        status = sfda("predict", "--run", run, "--images", images, "--out", out or tmp_path / "out", *more)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def probabilities(checkpoint: Path, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """(C, H, W) of an RGB image (H, W, 3)."""
    method = SourceTraining.load_from_checkpoint(checkpoint, weights_only=True).eval()
    pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        return method.predict_probabilities(pixels, size)[0].numpy()


def test_what_is_written(predict, photos, source_model, tmp_path):
    status, text = predict()
    assert status == 0
    assert text.splitlines()[-1].startswith("3 predicted, 0 there already, 0 unreadable;")
    out = tmp_path / "out"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    stems = [name.rpartition(".")[0] for name in SIZES]
    kinds = ("trainIds", "overlay", "confidence")
    assert written == {f"{stem}_{kind}.png" for stem in stems for kind in kinds} | {"classes.yaml", "predict.json"}
    for name, size in SIZES.items():
        stem = out / name.rpartition(".")[0]
        ids, overlay, confidence = (read(stem.with_name(f"{stem.name}_{kind}.png")) for kind in kinds)
        assert (ids.shape, overlay.shape, confidence.shape) == (size, (*size, 3), size)
        assert ids.dtype == confidence.dtype == np.uint8
        if name.endswith("jpg"):
            continue  # two JPEG decoders may differ
        image = read(photos / name)
        expected = probabilities(source_model, image)
        np.testing.assert_array_equal(ids, expected.argmax(0))
        assert np.abs(confidence - 255 * expected.max(0)).max() <= 0.51
        colours = np.array(CITYSCAPES19.colours)[ids]
        assert np.abs(overlay - (image / 2 + colours / 2)).max() <= 1
        assert len(np.unique(ids)) > 1


def test_folders_that_are_links_are_looked_into_and_loops_are_not(predict, photos, tmp_path):
    (photos / "deep").rename(tmp_path / "disk")
    (photos / "deep").symlink_to(tmp_path / "disk")
    (photos / "deep/er/loop").symlink_to(photos)
    status, text = predict()
    assert (status, text.splitlines()[-1].startswith("3 predicted,")) == (0, True)
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*_trainIds.png")}
    assert written == {f"{name.rpartition('.')[0]}_trainIds.png" for name in SIZES}


def test_images_of_every_type_are_predicted_and_other_files_are_named(predict, photos, tmp_path):
    for ending in ("tif", "TIFF", "bmp", "webp"):
        Image.open(photos / "a.png").save(photos / f"{ending}.{ending}")
    for name in ("notes.txt", "deep/moving.gif", ".DS_Store"):
        (photos / name).write_bytes(b"")
    status, text = predict()
    assert (status, text.splitlines()[-1].startswith("7 predicted,")) == (0, True)
    lines = [line for line in text.splitlines() if "left out" in line]
    assert lines == [
        f"2 files are left out (.gif: 1, .txt: 1), for example {photos}/deep/moving.gif; "
        "images are .png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp"
    ]
    status, text = predict(images=photos / "notes.txt")
    assert status == 2
    assert "there; 1 file is left out (.txt: 1)" in text


def test_the_class_file_reads_the_predictions(predict, tmp_path):
    predict()
    classes = load_class_set(str(tmp_path / "out/classes.yaml"))
    assert (classes.names, classes.colours) == (CITYSCAPES19.names, CITYSCAPES19.colours)
    assert classes.ids == {index: index for index in range(19)}


def test_images_are_brought_to_the_size_of_the_run(predict, source_model, photos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(source_model.parent, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["size"] = [16, 32]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert predict(run=run, images=photos / "a.png")[0] == 0
    image = read(photos / "a.png").astype(int)
    halved = (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2] + 2) // 4
    expected = probabilities(source_model, halved, (32, 64)).argmax(0)
    np.testing.assert_array_equal(read(tmp_path / "out/a_trainIds.png"), expected)
    assert "another size" in predict()[1]


def test_an_interrupted_call_goes_on(predict, tmp_path, monkeypatch):
    whole = {path: path.read_bytes() for path in _predictions(predict, tmp_path / "whole")}
    original, calls = SourceTraining.predict_probabilities, []

    def interrupted(self, images, size=None):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, images, size)

    monkeypatch.setattr(SourceTraining, "predict_probabilities", interrupted)
    assert predict()[0] == 130
    (done,) = (tmp_path / "out").rglob("*_trainIds.png")
    done.write_bytes(b"untouched")
    status, text = predict()
    assert status == 0
    assert "2 predicted, 1 there already" in text
    assert done.read_bytes() == b"untouched"
    for path, content in whole.items():
        again = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        assert again == done or again.read_bytes() == content
    assert not list((tmp_path / "out").rglob(".*"))


def test_an_image_is_done_only_when_all_of_it_is_written(predict, tmp_path, monkeypatch):
    replace = Path.replace

    def interrupted(self, target):
        if "confidence" in target.name:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        assert predict()[0] == 130
    written = {path.name for path in (tmp_path / "out").rglob("*.png") if not path.name.startswith(".")}
    assert written == {"a_overlay.png"}
    assert predict()[0] == 0
    assert len(list((tmp_path / "out").rglob("*.png"))) == 9


def _predictions(predict, out: Path) -> list[Path]:
    assert predict(out=out)[0] == 0
    return sorted(out.rglob("*.png"))


def test_predictions_of_another_checkpoint_are_never_mixed(predict, source_model, tmp_path):
    predict()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    checkpoint = torch.load(source_model, weights_only=True)
    checkpoint["state_dict"]["network.network.classifier.bias"] += 1
    torch.save(checkpoint, tmp_path / "other.ckpt")
    status, text = predict("--checkpoint", tmp_path / "other.ckpt")
    assert status == 2
    assert "selected.ckpt with another sha256: choose another --out" in text
    assert "another kind" in predict("--label-ids")[1]
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert predict("--checkpoint", tmp_path / "other.ckpt", out=tmp_path / "another")[0] == 0
    (tmp_path / "out/predict.json").unlink()
    assert "no predict.json says of what" in predict()[1]


def test_a_bad_image_is_named_and_left_out(predict, photos, tmp_path):
    (photos / "deep/cut.png").write_bytes((photos / "a.png").read_bytes()[:-20])
    (photos / "text.jpg").write_text("hello")
    status, text = predict()
    assert status == 1
    assert f"✗ {photos}/deep/cut.png: the file is cut off" in text
    assert f"✗ {photos}/text.jpg: " in text
    assert "3 predicted, 0 there already, 2 unreadable" in text
    assert len(list((tmp_path / "out").rglob("*_trainIds.png"))) == 3
    (photos / "text.jpg").unlink()
    shutil.copy(photos / "a.png", photos / "deep/cut.png")
    status, text = predict()
    assert status == 0
    assert "1 predicted, 3 there already" in text


def test_the_limit_on_pixels_is_that_of_the_target(predict, source_model, tmp_path):
    config = yaml.safe_load((source_model.parent / "config.yaml").read_text())
    config["data"]["init_args"]["target"]["max_pixels"] = 32 * 64 - 1
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    status, text = predict("--checkpoint", source_model, run=run)
    assert status == 1
    assert "a.png: declares 32x64 pixels (height x width), more than `max_pixels` 2047" in text
    assert "2 predicted, 0 there already, 1 unreadable" in text


def test_predictions_within_the_folder_of_images_are_no_images(predict, photos):
    for expected in ("3 predicted", "0 predicted, 3 there already"):
        status, text = predict(out=photos / "deep/predictions")
        assert status == 0
        assert expected in text


def test_what_is_refused(predict, photos, source_model, tmp_path):
    (tmp_path / "empty").mkdir()
    checkpoint = torch.load(source_model, weights_only=True)
    for name, path in (("gone.ckpt", "gone.Method"), ("list.ckpt", "builtins.list")):
        torch.save(
            {**checkpoint, "hyper_parameters": {**checkpoint["hyper_parameters"], "_class_path": path}}, tmp_path / name
        )
    for arguments, places, message in (
        ((), {"images": tmp_path / "empty"}, "no image or video (.png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp, .mp4"),
        ((), {"images": source_model}, "no image"),
        ((), {"images": tmp_path / "gone"}, "no such file or folder"),
        ((), {"out": photos}, "another one than that of the images"),
        ((), {"run": tmp_path / "empty"}, "it has no config.yaml"),
        (("--checkpoint", tmp_path / "none.ckpt"), {}, "none.ckpt does not exist"),
        (("--checkpoint", tmp_path / "gone.ckpt"), {}, "gone.Method, which is none of sfda.methods"),
        (("--checkpoint", tmp_path / "list.ckpt"), {}, "a file of weights names no code: give as --run"),
        (("--checkpoint", source_model.parent), {}, f"{source_model.parent} is a folder: give {source_model}"),
        (("--checkpoint", tmp_path / "empty"), {}, "is a folder: give the file of a checkpoint"),
    ):
        status, text = predict(*arguments, **places)
        assert status == 2, message
        assert message in text
    shutil.copy(photos / "a.png", photos / "a.jpeg")
    status, text = predict()
    assert status == 2
    assert f"{photos}/a.jpeg and {photos}/a.png would give the same file a_*.png" in text
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_classes_is_refused(predict, source_model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(source_model.parent, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("classes: cityscapes19", "classes: synthia16"))
    assert "trained with num_classes 19, this run has 16" in predict(run=run)[1]


# ---------------------------------------------------------------- Cityscapes label ids


def testlabel_ids_of(predict, town, tmp_path):
    images = town / "cityscapes/leftImg8bit/val"
    assert predict(images=images)[0] == 0
    assert predict("--label-ids", images=images, out=tmp_path / "official")[0] == 0
    label_of = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = {
        path.relative_to(tmp_path / "out").as_posix().replace("_leftImg8bit_trainIds", "_labelIds"): path
        for path in (tmp_path / "out").rglob("*_trainIds.png")
    }
    written = {
        path.relative_to(tmp_path / "official").as_posix(): path for path in (tmp_path / "official").rglob("*.png")
    }
    assert written.keys() == expected.keys()
    for name, path in written.items():
        np.testing.assert_array_equal(read(path), np.array(label_of)[read(expected[name])])
    assert "0 predicted, 6 there already" in predict("--label-ids", images=images, out=tmp_path / "official")[1]


def test_label_ids_of_smaller_class_sets(tmp_path):
    assert label_ids_of(SYNTHIA16).tolist() == [7, 8, 11, 12, 13, 17, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]
    assert label_ids_of(SYNTHIA13).tolist() == [7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]
    colours = "colours: [[1, 2, 3], [4, 5, 6]]\n"
    (tmp_path / "cat.yaml").write_text("names: [road, cat]\n" + colours)
    (tmp_path / "groups.yaml").write_text(
        "names: [road, car]\ngroups_of_cityscapes19: {road: [road], car: [car, truck]}\n" + colours
    )
    for name in ("cat.yaml", "groups.yaml"):
        with pytest.raises(UserError):
            label_ids_of(load_class_set(str(tmp_path / name)))


def test_the_official_evaluation_gives_the_same_miou(predict, sfda, source_model, town, tmp_path, monkeypatch):
    """Needs `pip install cityscapesscripts`, which the project itself does not."""
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    images = town / "cityscapes/leftImg8bit/val"
    assert predict("--label-ids", images=images, out=tmp_path / "official")[0] == 0
    assert sfda("validate", "--run", source_model.parent, "--out", tmp_path / "scored") == 0
    ours = json.loads((tmp_path / "scored/result.json").read_text())
    settings = {
        "predictionPath": str(tmp_path / "official"),
        "predictionWalk": None,
        "evalInstLevelScore": False,  # the town has no instances
        "JSONOutput": False,
        "quiet": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(official.args, name, value)
    truth = sorted(str(path) for path in (town / "cityscapes/gtFine/val").rglob("*_gtFine_labelIds.png"))
    predictions = [official.getPrediction(official.args, path) for path in truth]
    theirs = official.evaluateImgLists(predictions, truth, official.args)
    assert len(set(predictions)) == 6
    assert ours["target_miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-4)


def test_versions_of_a_frame_keep_names_that_the_official_evaluation_finds(tmp_path):
    names = [f"bonn_000000_000019_leftImg8bit{version}" for version in ("", "_foggy_beta_0.01", "_foggy_beta_0.02")]
    for name in names:
        (tmp_path / f"{name}.png").touch()
    written = [job.output("labelIds").name for job in _jobs(tmp_path, tmp_path / "out", label_ids=True)]
    assert written == [f"{name}_labelIds.png" for name in ("bonn_000000_000019", *names[1:])]


# ---------------------------------------------------------------- videos


def write_video(path: Path, frames: int = 5, height: int = 32, width: int = 64) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    random = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(cv2.resize(random.integers(0, 256, (4, 8, 3), dtype=np.uint8), (width, height)))
    writer.release()


def frames_of(path: Path) -> list[np.ndarray]:
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames


def test_videos_and_images_mix_and_a_broken_video_is_named(predict, photos, source_model, tmp_path):
    write_video(photos / "deep/drive.avi")
    (photos / "broken.mp4").write_bytes(b"no video")
    status, text = predict()
    assert (status, text.splitlines()[-1].startswith("4 predicted, 0 there already, 1 unreadable;")) == (1, True)
    assert f"✗ {photos}/broken.mp4: no frame of it can be decoded" in text
    given, drawn = frames_of(photos / "deep/drive.avi"), frames_of(tmp_path / "out/deep/drive_overlay.mp4")
    assert len(given) == len(drawn) == 5
    assert cv2.VideoCapture(str(tmp_path / "out/deep/drive_overlay.mp4")).get(cv2.CAP_PROP_FPS) == 10
    for number, frame in enumerate(given):
        ids = read(tmp_path / f"out/deep/drive/{number:06d}_trainIds.png")
        np.testing.assert_array_equal(ids, probabilities(source_model, frame).argmax(0))
        colours = np.array(CITYSCAPES19.colours)[ids]
        assert np.abs(drawn[number].astype(float) - (frame / 2 + colours / 2)).mean() < 20  # compressed
    assert not list((tmp_path / "out").rglob(".*"))
    assert "0 predicted, 4 there already, 1 unreadable" in predict()[1]


def test_frames_that_are_there_are_not_predicted_again(predict, photos, tmp_path, monkeypatch):
    write_video(photos / "drive.avi")
    assert predict(images=photos / "drive.avi")[0] == 0
    (tmp_path / "out/drive_overlay.mp4").unlink()
    (tmp_path / "out/drive/000003_trainIds.png").unlink()
    original, calls = SourceTraining.predict_probabilities, []
    counted = lambda self, *arguments: calls.append(1) or original(self, *arguments)  # noqa: E731
    monkeypatch.setattr(SourceTraining, "predict_probabilities", counted)
    assert predict(images=photos / "drive.avi")[0] == 0
    assert len(calls) == 1
    assert len(frames_of(tmp_path / "out/drive_overlay.mp4")) == 5


# ---------------------------------------------------------------- large images


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 1792, 1793, 2048, 4000, 6000])
def test_windows_cover_a_line_overlap_and_their_shares_sum_to_1(length):
    starts, shares = window_starts(length), window_shares(length)
    assert (starts[0], starts[-1] + min(1024, length)) == (0, length)
    assert all(after - before <= 1024 - 256 for before, after in itertools.pairwise(starts))
    torch.testing.assert_close(shares.sum(0), torch.ones(length))
    for start, share in zip(starts, shares, strict=True):
        assert share.nonzero().flatten().tolist() == list(range(start, start + min(1024, length)))


def test_an_image_in_windows_is_the_blend_of_their_probabilities(source_model, monkeypatch):
    method = SourceTraining.load_from_checkpoint(source_model, weights_only=True).eval()
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    with torch.inference_mode():
        plain = label_image(method, image, None, "a")
        monkeypatch.setattr(predict_windows, "LARGEST", 0)
        for one, other in zip(label_image(method, image, None, "a"), plain, strict=True):
            np.testing.assert_array_equal(one, other)  # one window covers it
        for name, value in (("WINDOW", 32), ("OVERLAP", 8)):
            monkeypatch.setattr(predict_windows, name, value)
        confidence, ids = label_image(method, image, None, "a")
    total, weights = np.zeros((19, 50, 90)), np.zeros((50, 90))
    for top in (0, 18):
        for left in (0, 19, 39, 58):
            ramp = np.minimum(np.arange(1, 33), np.arange(32, 0, -1))
            rows, columns = slice(top, top + 32), slice(left, left + 32)
            weights[rows, columns] += np.outer(ramp, ramp)
            total[:, rows, columns] += np.outer(ramp, ramp) * probabilities(source_model, image[rows, columns])
    np.testing.assert_allclose(confidence, (total / weights).max(0), atol=1e-5)
    assert (ids == total.argmax(0)).mean() > 0.999


def test_a_large_image_brought_to_a_size_is_labelled_at_fewer_pixels(source_model, monkeypatch):
    method = SourceTraining.load_from_checkpoint(source_model, weights_only=True).eval()
    board = torch.from_numpy(np.indices((24, 48)).sum(0) % 2)  # of classes 0 and 10
    scores = torch.zeros(1, 19, 24, 48)
    scores[0, 0], scores[0, 10] = 0.9 * (1 - board), 0.9 * board
    sizes = []

    def probabilities(_images, size):
        sizes.append(size)
        return scores

    monkeypatch.setattr(method, "predict_probabilities", probabilities)
    monkeypatch.setattr(predict_windows, "LARGEST", 48 * 96 // 4)
    confidence, ids = label_image(method, np.zeros((48, 96, 3), dtype=np.uint8), (16, 32), "a")
    assert sizes == [(24, 48)]
    np.testing.assert_array_equal(ids, np.kron(10 * board.numpy(), np.ones((2, 2))))
    np.testing.assert_allclose(confidence, np.full((48, 96), 0.9), rtol=1e-6)
