"""A run killed in any epoch goes on to the same weights, bit for bit."""

import json
import signal

import pytest
import torch

from tiny_runs import tiny_arguments

pytestmark = pytest.mark.slow
EPOCHS = 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_bit_equal_weights(workers, town, command, tmp_path):
    selector = "{class_path: sfda.callbacks.select_by_ece.SelectByECE, init_args: {start_after: 0.0}}"
    arguments = [*tiny_arguments("source_training", town), "--trainer.max_epochs", EPOCHS]
    arguments += ["--data.init_args.num_workers", workers, "--model.init_args.lr", "0.05"]
    assert command("fit", *arguments, "--trainer.callbacks", f"[{selector}]", "--out", tmp_path / "whole").status == 0
    expected = torch.load(tmp_path / "whole/last.ckpt", weights_only=True)
    for epoch in range(EPOCHS):
        folder = tmp_path / f"killed{epoch}"
        marker = tmp_path / f"marker{epoch}"
        killer = f"{{class_path: killer.KillOnce, init_args: {{epoch: {epoch}, marker: {marker}}}}}"
        done = command("fit", *arguments, "--trainer.callbacks", f"[{selector}, {killer}]", "--out", folder)
        assert done.status == -signal.SIGKILL
        assert not (folder / "result.json").exists()
        assert command("fit", "--run", folder).status == 0
        resumed = torch.load(folder / "last.ckpt", weights_only=True)
        assert resumed["global_step"] == expected["global_step"]
        for key, value in expected["state_dict"].items():
            assert torch.equal(value, resumed["state_dict"][key]), (epoch, key)
        for one, other in zip(expected["optimizer_states"], resumed["optimizer_states"], strict=True):
            for number, state in one["state"].items():
                assert torch.equal(state["momentum_buffer"], other["state"][number]["momentum_buffer"])
        whole, part = (json.loads((path / "selection.json").read_text()) for path in (tmp_path / "whole", folder))
        assert whole == part


@pytest.mark.parametrize("epoch", [0, 2])
def test_cal_sfda_killed_before_or_behind_its_warm_up_resumes_to_bit_equal_weights(
    epoch, town, value_net_model, command, tmp_path
):
    arguments = [*tiny_arguments("cal_sfda", town, value_net_model), "--trainer.max_epochs", EPOCHS]
    arguments += ["--model.init_args.lr", "0.05"]
    assert command("fit", *arguments, "--out", tmp_path / "whole").status == 0
    killer = f"[{{class_path: killer.KillOnce, init_args: {{epoch: {epoch}, marker: {tmp_path / 'marker'}}}}}]"
    done = command("fit", *arguments, "--trainer.callbacks", killer, "--out", tmp_path / "part")
    assert done.status == -signal.SIGKILL
    assert command("fit", "--run", tmp_path / "part").status == 0
    expected, resumed = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "part")
    )
    for key, value in expected.items():
        assert torch.equal(value, resumed[key]), key
