"""What the system refuses, and what lies damaged in a folder of ours, is a sentence of every command that meets it."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from mutants import damaged
from sfda.cli.main import main
from sfda.cli.predict_video import draw_video
from sfda.data.images import read_image
from sfda.errors import UserError
from sfda.files import WriteError, cannot_write, read_json
from sfda.runs import lock
from sfda.runs.run import Run
from test_files import no_file_larger_than
from tiny_runs import tiny_arguments


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ELOOP, errno.ENOENT])
def test_a_disk_that_fails_is_a_sentence(code):
    error = cannot_write(OSError(code, os.strerror(code), "some/file"))
    assert str(error).startswith(f"some/file cannot be used ({os.strerror(code)}): ")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file of Linux that can be opened and not be read")
def test_an_image_that_the_disk_does_not_give_is_named(tmp_path):
    (tmp_path / "a.png").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"a\.png: cannot be opened \(Input/output error\)"):
        read_image(tmp_path / "a.png")


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    with no_file_larger_than(10):
        with pytest.raises(WriteError, match=r"run/\.lock cannot be written \(File too large\)"):
            lock.hold(tmp_path / "run", first=True)
        lock.release()  # writes nothing more


@pytest.mark.medium
def test_a_run_whose_lock_cannot_be_written_names_it(town, source_model, sfda, tmp_path, capsys):
    with no_file_larger_than(10):
        assert sfda("fit", *tiny_arguments("ada_bn", town, source_model), "--out", tmp_path / "run") == 2
    assert f"sfda: {tmp_path}/run/.lock cannot be written (File too large)" in capsys.readouterr().err


def test_a_folder_that_is_gone_is_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["compare", "a.yaml", "--out", "out"]) == 2
    assert capsys.readouterr().err.startswith("sfda: a file cannot be written (No such file or directory): it, or its")


def test_a_process_of_a_pool_that_is_killed_is_a_sentence(monkeypatch, capsys):
    def check(arguments):
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            pool.submit(os.kill, 0, 0).result()
            pool.submit(_kill_oneself).result()

    monkeypatch.setattr("sfda.cli.main._data", check)
    assert main(["data"]) == 2
    assert "sfda: a process that this command started has died, probably of too little" in capsys.readouterr().err


def _kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


# --------------------------------------------------------------------- files of a run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {class_path: sfda.methods.tent.Tent, init_args: {}}\n")
    content = {"target_entropy": 0.25, "experiment": "tent", "selected": {"epoch": 1}}
    for name in ("result.json", "selection.json", "settings.json"):
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


READS = {
    "result.json": lambda run: run.row(),
    "selection.json": lambda run: run.scores(),
    "settings.json": lambda run: run.check({"config": {}}),
}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"null", b"[" * 5000], ids=repr)
@pytest.mark.parametrize("name", READS)
def test_a_damaged_file_of_a_run_is_named_with_the_way_out(name, content, folder):
    (folder / name).write_bytes(content[:9] if len(content) < 10 else content)
    with pytest.raises(UserError, match=rf"{name} is damaged .*: move it away, and give the command that wrote it"):
        READS[name](Run(folder))


def test_a_mutated_file_of_values_is_read_or_named(folder):
    import random

    path, refused = folder / "result.json", 0
    for _, content in damaged(path.read_bytes(), random.Random(0), 200):
        path.write_bytes(content)
        try:
            assert isinstance(read_json(path), dict)
        except UserError:
            refused += 1
    assert refused > 100


# --------------------------------------------------------------------- commands


@pytest.mark.medium
def test_an_export_that_does_not_fit_is_a_sentence_and_leaves_nothing(source_model, sfda, tmp_path, capsys):
    for kind in ("onnx", "pt2"):
        with no_file_larger_than(5000):
            assert sfda("export", "--run", source_model.parent, "--format", kind, "--out", tmp_path / f"m.{kind}") == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / 'm.'}{kind} cannot be written (File too large)" in error
    assert not list(tmp_path.glob(".m*"))
    assert not list(tmp_path.glob("m*"))


def test_a_video_that_does_not_fit_is_a_sentence_and_leaves_nothing(tmp_path):
    source, out = tmp_path / "a.avi", tmp_path / "out/a.mp4"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    rng = np.random.default_rng(0)
    for _ in range(30):
        writer.write(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
    writer.release()
    with no_file_larger_than(50_000), pytest.raises(WriteError, match=r"out/a\.mp4 cannot be written"):
        draw_video(source, out, lambda number, frame: frame)
    assert not list(out.parent.iterdir())
    draw_video(source, out, lambda number, frame: frame)
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FRAME_COUNT) == 30


@pytest.mark.medium
def test_what_is_written_stays_where_the_rest_does_not_fit(town, source_model, sfda, tmp_path):
    run = tmp_path / "run"
    assert sfda("fit", *tiny_arguments("info_max", town, source_model), "--out", run) == 0
    kept = {path: path.read_bytes() for path in run.iterdir()}
    with no_file_larger_than(3000):
        assert sfda("validate", "--run", run) == 2
    assert {path: path.read_bytes() for path in kept if path.name != lock.NAME} == {
        path: content for path, content in kept.items() if path.name != lock.NAME
    }
    assert sfda("validate", "--run", run) == 0


@pytest.mark.medium
def test_a_disk_that_fails_in_a_command_that_reads_is_a_sentence(town, source_model, sfda, tmp_path, capsys):
    shutil.copytree(town / "cityscapes/leftImg8bit/val", tmp_path / "images")
    (tmp_path / "images/link").symlink_to(tmp_path / "images/link")
    for words in (
        ("judge", source_model.parent, "--images", tmp_path / "absent"),
        ("audit", "--run", tmp_path / "absent"),
        ("data", "check", "--config", tmp_path / "images"),
    ):
        assert sfda(*words) == 2
        assert "Traceback" not in (error := capsys.readouterr().err)
        assert str(tmp_path) in error
