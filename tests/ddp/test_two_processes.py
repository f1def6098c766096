"""Two gloo processes: the same files, the same scores, the same weights on both."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sfda.cli.lightning_cli import LAUNCHED, _leave_the_group
from tiny_runs import tiny_arguments

pytestmark = pytest.mark.medium

TESTS = str(Path(__file__).resolve().parents[1])
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
SELECTORS = {
    "ece": "[{class_path: sfda.callbacks.select_by_ece.SelectByECE, init_args: {start_after: 0.0}}]",
    "entropy": "[{class_path: sfda.callbacks.select_by_entropy.SelectByEntropy}]",
}


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("selector", SELECTORS)
def test_both_ranks_hold_the_same_and_keep_the_same_file(selector, town, sfda, tmp_path, ranks_at_fit_end):
    arguments = [*tiny_arguments("source_training", town), "--trainer.callbacks", SELECTORS[selector]]
    arguments += ["--model.init_args.lr", "0.05", "--trainer.max_epochs", "3", "--data.init_args.batch_size", "2"]
    assert sfda("fit", *arguments, *TWO, "--out", tmp_path / "run") == 0
    one, other = ranks_at_fit_end()
    assert one["selected"] == other["selected"]
    assert one["metrics"].keys() == other["metrics"].keys()
    for key, value in one["metrics"].items():
        if not key.startswith("train/"):  # those are each rank's own
            assert value == other["metrics"][key], key
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key]), key
    report = json.loads((tmp_path / "run/selection.json").read_text())
    assert (
        Path(one["selected"][0]).name == f"epoch={report['selected']['epoch']}-step={report['selected']['step']}.ckpt"
    )
    assert state(tmp_path / "run/selected.ckpt").keys() == one["state"].keys()


def test_one_checkpoint_scores_the_same_on_one_and_on_two_processes(town, source_model, sfda, tmp_path):
    """Each of an odd number of images is scored exactly once."""
    odd = tmp_path / "town"
    shutil.copytree(town, odd)
    for kind in ("leftImg8bit", "gtFine"):
        sorted((odd / "cityscapes" / kind / "val").rglob("*.png"))[0].unlink()
    arguments = tiny_arguments("source_only", odd, source_model)
    assert sfda("validate", *arguments, "--out", tmp_path / "one") == 0
    assert sfda("validate", *arguments, *TWO, "--out", tmp_path / "two") == 0
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    scores = [key for key, value in one.items() if key.startswith(("target_", "source_")) and isinstance(value, float)]
    assert len(scores) > 15
    for key in scores:
        assert two[key] == pytest.approx(one[key], abs=1e-5), key


def test_ada_bn_of_two_processes_is_that_of_one_with_their_batches(town, source_model, sfda, tmp_path, monkeypatch):
    arguments = [*tiny_arguments("ada_bn", town, source_model), "--data.init_args.samples_per_epoch", "16"]
    arguments += ["--model.init_args.alpha", "0.5"]
    assert sfda("fit", *arguments, *TWO, "--out", tmp_path / "two") == 0

    from sfda.data.sampling import TrainingSampler

    def in_the_order_of_two_ranks(self):
        drawn = [list(part(self, rank)) for rank in range(2)]
        for start in range(0, len(drawn[0]), 4):
            for rank in range(2):
                yield from drawn[rank][start : start + 4]

    original = TrainingSampler.__iter__

    def part(sampler, rank):
        half = TrainingSampler(sampler.dataset_size, sampler.stride, sampler.seed, sampler.epoch, 2, rank)
        return original(half)

    monkeypatch.setattr(TrainingSampler, "__iter__", in_the_order_of_two_ranks)
    assert sfda("fit", *arguments, "--out", tmp_path / "one") == 0
    one, two = state(tmp_path / "one/selected.ckpt"), state(tmp_path / "two/selected.ckpt")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("readable", [16, 1])
def test_label_calibration_of_two_processes_is_that_of_one(readable, town, source_model, sfda, tmp_path):
    """Also where one process has no image that can be read."""
    shutil.copytree(town, tmp_path / "town")
    images = sorted((tmp_path / "town/cityscapes/leftImg8bit/train").rglob("*.png"))
    for image in images[readable:]:
        image.write_bytes(image.read_bytes()[:-40])
    arguments = [*tiny_arguments("label_calibration", tmp_path / "town", source_model)]
    arguments += ["--data.init_args.samples_per_epoch", "16", "--data.init_args.batch_size", "2"]
    assert sfda("fit", *arguments, "--out", tmp_path / "one") == 0
    assert sfda("fit", *arguments, *TWO, "--out", tmp_path / "two") == 0
    one, two = state(tmp_path / "one/selected.ckpt"), state(tmp_path / "two/selected.ckpt")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6)
    reports = [json.loads((tmp_path / run / "label_calibration.json").read_text()) for run in ("one", "two")]
    assert reports[0]["pixels"] == reports[1]["pixels"]
    assert sum(reports[1]["pixels"].values()) == readable * 32 * 64


def test_several_validations_on_two_processes(town, source_model, sfda, tmp_path):
    """Each of the calls joined by --then starts two processes of its own, and scores as it would alone."""
    jobs = [
        [*tiny_arguments("source_only", town, source_model), "--model.init_args.views", views]
        for views in ("single", "multi_scale")
    ]
    for views, job in zip("ab", jobs, strict=True):
        assert sfda("validate", *job, "--out", tmp_path / "alone" / views) == 0
    first, second = ([*job, *TWO, "--out", tmp_path / views] for views, job in zip("ab", jobs, strict=True))
    third = ["--run", tmp_path / "alone/a", *TWO, "--out", tmp_path / "c"]
    before = dict(os.environ)
    assert sfda("validate", *first, "--then", *second, "--then", *third) == 0
    assert not dist.is_initialized()
    for name in LAUNCHED:
        if name != "MASTER_PORT":  # the launcher that forks looks for one, and takes it again
            assert os.environ.get(name) == before.get(name), name
    for one, two in zip("aba", "abc", strict=True):
        alone, joined = (
            json.loads((path / "result.json").read_text()) for path in (tmp_path / "alone" / one, tmp_path / two)
        )
        assert joined["views"] == alone["views"]
        for key in ("target_miou", "target_ece", "source_miou", "source_ece"):
            assert joined[key] == pytest.approx(alone[key], abs=1e-5), key


@pytest.mark.parametrize("launched_by", ["itself", "torchrun"])
def test_a_group_is_left_by_who_made_it(launched_by, tmp_path, monkeypatch):
    """What the launcher of ``--trainer.strategy ddp`` leaves in the first process must not reach the next run."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    if launched_by == "torchrun":
        monkeypatch.setenv("LOCAL_RANK", "0")
    before = dict(os.environ)
    for name in LAUNCHED:
        monkeypatch.setenv(name, "0")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        _leave_the_group(before)
        left = not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert left == (launched_by == "itself")
    if left:
        assert {name: os.environ[name] for name in LAUNCHED if name in os.environ} == {"MASTER_ADDR": "elsewhere"}


def test_a_finished_run_is_refused_by_all_ranks_together(town, source_model, sfda, tmp_path):
    arguments = [*tiny_arguments("ada_bn", town, source_model), *TWO, "--out", tmp_path / "run"]
    assert sfda("fit", *arguments) == 0
    assert sfda("fit", *arguments) == 2


def test_a_rank_that_meets_nan_ends_both_with_a_sentence(town, source_model, sfda, tmp_path, capsys):
    checkpoint = torch.load(source_model, weights_only=True)
    checkpoint["state_dict"]["network.network.classifier.weight"].fill_(3e38)  # finite, but the logits overflow
    torch.save(checkpoint, tmp_path / "source.ckpt")
    for command, model in (("validate", "source_only"), ("fit", "source_training")):
        arguments = [*tiny_arguments(model, town, tmp_path / "source.ckpt"), *TWO, "--out", tmp_path / model]
        assert sfda(command, *arguments) == 2
        assert f"check the source checkpoint {tmp_path / 'source.ckpt'}\n" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_starts_the_same_run(town, source_model, tmp_path):
    arguments = [*tiny_arguments("source_training", town), "--out", str(tmp_path / "run"), "--trainer.devices", "2"]
    arguments += ["--trainer.strategy", "ddp", "--trainer.max_epochs", "2", "--data.init_args.batch_size", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "sfda.cli", "fit"]
    environment = {**os.environ, "PYTHONPATH": TESTS, "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*command, *arguments], check=True, env=environment, cwd=tmp_path, timeout=300)
    assert json.loads((tmp_path / "run/result.json").read_text())["selected_step"] == 4


@pytest.mark.slow
def test_several_validations_start_their_ranks_themselves(town, source_model, tmp_path):
    """``--trainer.strategy ddp``: this process is the first rank of both, and starts a second one for each."""
    arguments = [*tiny_arguments("source_only", town, source_model), "--trainer.devices", "2"]
    arguments += ["--trainer.strategy", "ddp", "--out"]
    command = [sys.executable, "-m", "sfda.cli", "validate", *arguments, "a", "--then", *arguments, "b"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    environment |= {"PYTHONPATH": TESTS, "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=600)
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert first["target_miou"] == second["target_miou"] is not None
