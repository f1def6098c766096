"""The command line as a user meets it: help, sentences instead of tracebacks."""

import json
import subprocess
import sys

import pytest
import torch

from sfda.cli.main import HELP, main
from tiny_runs import tiny_arguments


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_loads_nothing_heavy():
    loaded = run_python("import sys; from sfda.cli.main import main; main(['--help']); print(*sys.modules)")
    assert loaded.startswith("usage: sfda")
    assert not {"torch", "lightning", "numpy", "cv2", "yaml", "rich"} & set(loaded.split())


def test_help_names_every_command(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text == HELP * 2
    assert main(["nothing"]) == 2
    named = capsys.readouterr().err.split("one of ")[1].split(" (see")[0].split(", ")
    assert all(f"  sfda {command} " in HELP for command in named)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.init_args.bogus", "3"], "Option 'bogus' is not accepted"),
        (["--model.init_args.alpah", "0.2"], r"did you mean alpha\? `sfda fit --model.help AdaBN`"),
        (["--model.init_args.alpha", "3"], "alpha: auto, or a number from 0 to 1, not 3"),
        (["--model.init_args.alpha", "often"], 'Parser key "alpha"'),
        (["--model.init_args.network", "smp:Foo/bar"], "no architecture 'Foo'"),
        (["--data.init_args.target.layout", "gta6"], "known layouts are .* did you mean gta5"),
        (["--data.init_args.target.root", "nowhere"], "nowhere: no such folder"),
        (["--data.init_args.crop", "[3]"], r"crop: \[height, width\]"),
        (["--data.init_args.scale", "[2, 1]"], "scale:"),
        (["--data.init_args.classes", "cityscapes91"], "class set 'cityscapes91'"),
        (["--data.init_args.batch_size", "0"], "batch_size"),
        (["--data.init_args.batch_size", "100"], "samples_per_epoch"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs"),
        (["--trainer.precision", "bf16-true"], "give bf16-mixed"),
        (["--model.init_args.source_checkpoint", "none.ckpt"], "none.ckpt does not exist"),
        (["--nonsense", "1"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_mistake_is_a_sentence(more, message, town, source_model, sfda, tmp_path, capsys):
    import re

    assert sfda("fit", *tiny_arguments("ada_bn", town, source_model), "--out", tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert "Union" not in error
    assert not (tmp_path / "run/result.json").exists()


@pytest.mark.medium
def test_ckpt_path_never_changes_the_method(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("ada_bn", town), "--out", tmp_path / "run", "--ckpt_path", source_model]
    assert sfda("validate", *arguments) == 2
    assert "source_checkpoint" in capsys.readouterr().err


@pytest.mark.medium
def test_ckpt_path_never_changes_an_option(town, source_model, sfda, tmp_path):
    """LightningCLI would take the checkpoint's `views` and leave the user's aside."""
    arguments = [*tiny_arguments("source_training", town), "--model.init_args.views", "multi_scale"]
    assert sfda("validate", *arguments, "--ckpt_path", source_model, "--out", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["views"] == "multi_scale"


@pytest.mark.medium
def test_a_source_model_of_other_classes_is_refused(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("ada_bn", town, source_model), "--data.init_args.classes", "synthia16"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "num_classes 19, this run has 16" in capsys.readouterr().err


@pytest.mark.medium
def test_a_file_that_is_no_checkpoint_is_refused(town, sfda, tmp_path, capsys):
    for name, content in (("text.ckpt", b"hello"), ("empty.ckpt", b"")):
        (tmp_path / name).write_bytes(content)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    for name in ("text.ckpt", "empty.ckpt", "other.ckpt"):
        assert sfda("fit", *tiny_arguments("ada_bn", town, tmp_path / name), "--out", tmp_path / "run") == 2
        assert name in capsys.readouterr().err


@pytest.mark.medium
def test_several_validations_share_a_process(town, source_model, sfda, tmp_path):
    arguments = tiny_arguments("source_only", town, source_model)
    second = [*arguments, "--out", tmp_path / "b", "--model.init_args.views", "multi_scale"]
    assert sfda("validate", *arguments, "--out", tmp_path / "a", "--then", *second) == 0
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert (one["views"], other["views"]) == ("single", "multi_scale")
    assert one["target_ece"] != other["target_ece"]
    assert sfda("validate", *arguments, "--out", tmp_path / "a") == 2  # never overwritten
    assert sfda("fit", "--run", tmp_path / "a", "--then", "--run", tmp_path / "b") == 2


@pytest.mark.medium
def test_a_bad_pair_is_left_out_and_named(town, source_model, sfda, tmp_path, capsys):
    import shutil

    shutil.copytree(town, tmp_path / "town")
    label = sorted((tmp_path / "town/cityscapes/gtFine/val").rglob("*.png"))[0]
    label.write_bytes(label.read_bytes()[:-40])
    arguments = tiny_arguments("source_only", tmp_path / "town", source_model)
    assert sfda("validate", *arguments, "--out", tmp_path / "run") == 0
    error = capsys.readouterr().err
    assert error.count(label.name) == 1
    assert "1 bad pairs were left out" in error


@pytest.mark.medium
def test_one_bad_image_a_batch_stops_nothing(town, source_model, sfda, tmp_path, capsys):
    import shutil

    shutil.copytree(town, tmp_path / "town")
    for split in ("train", "val"):
        image = sorted((tmp_path / "town/cityscapes/leftImg8bit" / split).rglob("*.png"))[0]
        image.write_bytes(image.read_bytes()[:-40])
    alone = ["--data.init_args.val_batch_size", 1, "--data.init_args.batch_size", 1]
    alone += ["--data.init_args.samples_per_epoch", 16]
    arguments = [*tiny_arguments("label_calibration", tmp_path / "town", source_model), *alone]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    assert sfda("validate", "--run", tmp_path / "run") == 0
    assert "1 bad pairs were left out" in capsys.readouterr().err
    arguments = [*tiny_arguments("target_oracle", tmp_path / "town", source_model), *alone]
    assert sfda("fit", *arguments, "--out", tmp_path / "trained") == 2
    assert "no pair of a whole training batch" in capsys.readouterr().err


@pytest.mark.medium
def test_without_labels_there_are_label_free_scores(town, source_model, sfda, tmp_path, capsys):
    import shutil

    shutil.copytree(town / "cityscapes", tmp_path / "cityscapes")
    shutil.rmtree(tmp_path / "cityscapes/gtFine")
    arguments = tiny_arguments("source_only", tmp_path, source_model)
    assert sfda("validate", *arguments, "--out", tmp_path / "run") == 0
    assert "only label-free scores of the target domain" in capsys.readouterr().err
    row = json.loads((tmp_path / "run/result.json").read_text())
    assert row["target_miou"] is None
    assert row["target_entropy"] > 0


@pytest.mark.medium
def test_a_method_that_was_never_fitted_is_not_scored_as_if(town, source_model, sfda, tmp_path, capsys):
    assert sfda("validate", *tiny_arguments("target_oracle", town, source_model), "--out", tmp_path / "run") == 2
    assert "has to be fitted first" in capsys.readouterr().err
    assert not (tmp_path / "run/result.json").exists()


@pytest.mark.medium
def test_a_pass_that_was_cut_short_is_no_result(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("ada_bn", town, source_model), "--trainer.max_time", "00:00:00:00"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "ended before its work was done" in capsys.readouterr().err
    assert not (tmp_path / "run/selected.ckpt").exists()


@pytest.mark.medium
def test_a_run_scored_elsewhere_keeps_its_weights_and_facts(town, source_model, sfda, tmp_path):
    """Scored in another folder with other views, and scored there again: the adapted model both times."""
    arguments = [*tiny_arguments("target_oracle", town, source_model), "--model.init_args.lr", "0.1"]
    assert sfda("fit", *arguments, "--out", tmp_path / "a") == 0
    more = ["--model.init_args.views", "multi_scale", "--out", tmp_path / "b"]
    assert sfda("validate", "--run", tmp_path / "a", *more) == 0
    first = json.loads((tmp_path / "b/result.json").read_text())
    assert sfda("validate", "--run", tmp_path / "b") == 0
    again = json.loads((tmp_path / "b/result.json").read_text())
    assert first == again
    assert first["views"] == "multi_scale"
    assert first["adapt_seconds"] is not None
    state, source = (
        torch.load(path, weights_only=True)["state_dict"] for path in (tmp_path / "b/selected.ckpt", source_model)
    )
    assert any(not torch.equal(value, source[key]) for key, value in state.items())
