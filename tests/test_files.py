"""What cannot be written is a sentence: which file, what stays, and how to go on."""

import errno
import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from sfda.callbacks.run_folder import MetricsFile
from sfda.cli.main import main
from sfda.files import WriteError, write_json, write_whole
from sfda.town import write_streets
from tiny_runs import NETWORK, tiny_arguments

SWEEP = {
    "program": "sfda",
    "method": "grid",
    "metric": {"name": "target/entropy", "goal": "minimize"},
    "parameters": {"model.init_args.lr": {"values": [0.1]}},
}


@contextmanager
def no_file_larger_than(size: int):
    """What a full disk is to a large file: the system refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def stops(sfda, capsys):
    """Runs a command that must not succeed, no file larger than so many bytes; gives what it says."""

    def run(size: int, *arguments: object) -> str:
        with no_file_larger_than(size):
            assert sfda(*arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error.splitlines()[-1]

    return run


# --------------------------------------------------------------------- one file


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "deep/er/a.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with no_file_larger_than(1000), pytest.raises(WriteError, match=r"a\.json cannot be written \(File too large\)"):
        write_whole(path, bytes(2000))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_says_how_much_is_needed(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"device; it needs 1\.23 MB, and [\d.]+ [kMGT]?B are free\): make room there"):
        write_whole(tmp_path / "a", bytes(1_234_567))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_what_a_logger_cannot_write_is_named(tmp_path):
    logger = MetricsFile(str(tmp_path), name="", version="")
    logger.log_metrics({"loss": 1.0}, step=0)
    for name in ("metrics.csv", "hparams.yaml"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"metrics\.csv cannot be written .No space left on device"):
        logger.save()
    with pytest.raises(WriteError, match=r"hparams\.yaml cannot be written .No space left on device"):
        logger.log_hyperparams({"lr": 1.0})


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR])
def test_what_the_system_refuses_is_a_sentence_for_every_command(code, monkeypatch, capsys):
    def refuse(arguments: list[str]) -> int:
        raise OSError(code, os.strerror(code), "some/file")

    monkeypatch.setattr("sfda.cli.main._compare", refuse)
    assert main(["compare"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sfda: some/file cannot be used ({os.strerror(code)}): ")
    assert error.endswith("the same command goes on from there\n")


def test_what_a_user_cannot_mend_keeps_its_traceback(monkeypatch):
    def break_down(arguments: list[str]) -> int:
        raise OSError(errno.ECONNRESET, "gone")

    monkeypatch.setattr("sfda.cli.main._compare", break_down)
    with pytest.raises(OSError, match="gone"):
        main(["compare"])


# --------------------------------------------------------------------- commands


@pytest.mark.medium
def test_a_folder_that_cannot_be_written_is_named_by_every_command(town, source_model, sfda, tmp_path, capsys):
    (tmp_path / "file").write_text("")  # root may write anywhere but below a file
    out, run = tmp_path / "file/out.ckpt", source_model.parent
    weights = tmp_path / "weights.pt"
    prefix, state = "network.network.", torch.load(source_model, weights_only=True)["state_dict"]
    torch.save({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, weights)
    for arguments in (
        ("fit", *tiny_arguments("ada_bn", town, source_model)),
        ("validate", *tiny_arguments("source_only", town, source_model)),
        ("predict", "--run", run, "--images", town / "cityscapes"),
        ("calibrate", "--run", run, "--with", "pseudo_cal"),
        ("data", "streets"),
        ("adapt", "--source", run, "--images", town / "cityscapes/leftImg8bit/val"),
        ("export", "--run", run, "--format", "onnx"),
        ("weights", "import", weights, "--network", NETWORK),
    ):
        assert_refused(sfda, capsys, *arguments, "--out", out)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named_by_commands_that_run_others(sfda, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    comparison = tmp_path / "compare.yaml"
    comparison.write_text(yaml.safe_dump({"benchmark": "streets", "seeds": [1], "experiments": ["ada_bn"]}))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({**SWEEP, "command": ["sfda", "fit", "streets/tent", "${args}"]}))
    for arguments in (("compare", comparison), ("sweep", sweep, "--trials", 1)):
        assert_refused(sfda, capsys, *arguments, "--out", tmp_path / "file/out")


def assert_refused(sfda, capsys, *arguments):
    assert sfda(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sfda: {arguments[-1]}"), error
    assert re.search(r"cannot be written \((Not a directory|File exists)\): choose another folder", error)


@pytest.mark.medium
def test_a_fit_that_cannot_save_says_how_it_goes_on(town, source_model, sfda, stops, tmp_path, monkeypatch):
    run = tmp_path / "run"
    arguments = [*tiny_arguments("info_max", town, source_model), "--trainer.max_epochs", 2, "--out", run]
    size = 20_000  # a checkpoint has more, all else less
    error = stops(size, "fit", *arguments)
    assert f"{run / 'last.ckpt'} cannot be written (File too large)" in error
    assert error.endswith("give the same command again")

    def tighten(self, trainer, *_):
        if trainer.current_epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with monkeypatch.context() as patch:
        patch.setattr("sfda.callbacks.skipped_files.SkippedFiles.on_train_batch_start", tighten)
        error = stops(10**9, "fit", *arguments)
    assert error.endswith(f"`sfda fit --run {run}` goes on from the last whole epoch")
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 0  # that of the epoch before
    assert sfda("fit", "--run", run) == 0


@pytest.mark.medium
def test_a_pass_whose_row_could_not_be_written_goes_on(town, source_model, sfda, tmp_path):
    run = tmp_path / "run"
    assert sfda("fit", *tiny_arguments("ada_bn", town, source_model), "--out", run) == 0
    row = (run / "result.json").read_text()
    (run / "result.json").unlink()
    assert sfda("fit", "--run", run) == 0
    assert '"selected_by": "last"' in row
    assert '"selected_by": "last"' in (run / "result.json").read_text()


@pytest.mark.medium
def test_a_validation_that_cannot_draw_says_how_it_goes_on(town, source_model, sfda, stops, tmp_path):
    run = tmp_path / "run"
    arguments = ("validate", *tiny_arguments("source_only", town, source_model), "--out", run)
    error = stops(20_000, *arguments)
    assert f"{run / 'reliability_target.png'} cannot be written" in error
    assert error.endswith("give the same command again")
    assert sfda(*arguments) == 0
    assert (run / "reliability_target.png").exists()
    assert (run / "result.json").exists()


@pytest.mark.medium
def test_an_image_that_could_not_be_written_is_predicted_again(town, source_model, sfda, stops, tmp_path, capsys):
    images = next((town / "cityscapes/leftImg8bit/val").iterdir())
    arguments = ("predict", "--run", source_model.parent, "--images", images, "--out", tmp_path)
    assert "_overlay.png cannot be written" in stops(3000, *arguments)
    assert not list(tmp_path.glob("*_trainIds.png"))
    assert not list(tmp_path.glob(".*"))
    assert sfda(*arguments) == 0
    assert "3 predicted, 0 there already" in capsys.readouterr().out


@pytest.mark.medium
def test_a_calibration_that_cannot_save_is_a_sentence(source_model, stops, tmp_path):
    error = stops(10_000, "calibrate", "--run", source_model.parent, "--with", "pseudo_cal", "--out", tmp_path / "run")
    assert f"{tmp_path / 'run/last.ckpt'} cannot be written" in error


@pytest.mark.medium
def test_a_town_that_does_not_fit_is_completed_later(tmp_path):
    counts = {"cityscapes": {"train": 1, "val": 0}}
    options = {"height": 32, "width": 64, "counts": counts, "domains": ("cityscapes",)}
    with no_file_larger_than(2000), pytest.raises(WriteError, match=r"leftImg8bit\.png cannot be written"):
        write_streets(tmp_path, **options)
    write_streets(tmp_path, **options)
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert not list(tmp_path.rglob(".*"))


def test_workers_without_shared_memory_are_a_sentence(sfda, monkeypatch, capsys):
    def die(words: list[str]) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...")

    monkeypatch.setattr("sfda.cli.lightning_cli.CommandLine", die)
    assert sfda("fit", "streets/ada_bn") == 2
    assert "lower --data.init_args.num_workers" in capsys.readouterr().err
