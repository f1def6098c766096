"""Source models that were trained elsewhere."""

import pytest
import torch

from sfda.errors import UserError
from sfda.networks.build import build_network
from sfda.runs.checkpoints import read_checkpoint
from tiny_runs import NETWORK


def test_bare_weights_are_refused_with_a_way_out(tmp_path):
    torch.save(build_network(NETWORK, 19).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"become one with `sfda weights import .*plain\.pth --network NAME"):
        read_checkpoint(str(tmp_path / "plain.pth"))


def test_a_missing_predecessor_names_its_command():
    with pytest.raises(UserError, match="`sfda fit streets/value_net_training --seed_everything 3` writes it"):
        read_checkpoint("runs/streets/value_net_training/seed3/selected.ckpt")
    with pytest.raises(UserError, match=r"elsewhere\.ckpt does not exist: train it first"):
        read_checkpoint("elsewhere.ckpt")


def test_a_run_folder_is_no_checkpoint_but_holds_one(tmp_path):
    with pytest.raises(UserError, match=r"is a folder: give the file of a checkpoint; it holds no selected\.ckpt"):
        read_checkpoint(str(tmp_path))
    (tmp_path / "selected.ckpt").touch()
    with pytest.raises(UserError, match=f"checkpoint {tmp_path} is a folder: give {tmp_path}/selected.ckpt"):
        read_checkpoint(str(tmp_path))
