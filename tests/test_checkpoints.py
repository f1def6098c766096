"""Source models that were trained elsewhere."""

from pathlib import Path

import pytest
import torch

from sfda.errors import UserError
from sfda.methods.source_only import SourceOnly
from sfda.networks.build import build_network
from sfda.runs.checkpoints import read_checkpoint
from tiny_runs import NETWORK

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_lines_of_the_readme_make_a_source_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = build_network(NETWORK, 19).network
    torch.save(mine.state_dict(), "my_weights.pt")
    code = next(part for part in README.read_text().split("```python")[1:] if "my_weights.pt" in part).split("```")[0]
    exec(code.replace("deeplab_v2_resnet101", NETWORK), {})
    method = SourceOnly(network=NETWORK, num_classes=19, source_checkpoint="source.ckpt")
    method.initialise_from_source()
    loaded = method.network.network.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in mine.state_dict().items())


def test_bare_weights_are_refused_with_a_way_out(tmp_path):
    torch.save(build_network(NETWORK, 19).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"'network\.' \+ key"):
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
