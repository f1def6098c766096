"""A damaged file of weights is refused, whichever bit is another one."""

import random
from pathlib import Path

import pytest
import torch

from sfda.callbacks.run_folder import WholeCheckpoints
from sfda.errors import UserError
from sfda.networks.weights_file import read_weights
from sfda.runs.checkpoints import read_checkpoint, write_checkpoint

FLIPS = 300
READERS = {
    "a checkpoint": lambda path: read_checkpoint(str(path)),
    "weights from elsewhere": lambda path: read_weights(path).content,
}


def content(value: float = 1.0) -> dict[str, object]:
    state = {f"network.{name}": torch.full((40,), value) for name in ("weight", "bias", "running_var")}
    return {"state_dict": state, "hyper_parameters": {"network": "a", "num_classes": 19}, "global_step": 7}


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("reader", READERS)
def test_no_flipped_bit_gives_other_weights(reader, tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, content())
    genuine, draw = path.read_bytes(), random.Random(0)
    refused = []
    for bit in draw.sample(range(8 * len(genuine)), FLIPS):
        damaged = bytearray(genuine)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert same(READERS[reader](path), content()), bit
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > FLIPS / 4  # the others are padding
    assert all(str(path) in message for message in refused)


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_weight_is_named_with_its_place_and_the_way_out(reader, tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, content())
    place = path.read_bytes().find(bytes.fromhex("0000803f") * 40)  # 1.0, 40 times
    data = bytearray(path.read_bytes())
    data[place + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.ckpt is damaged \(the checksum of .*data/\d in it is wrong\): copy it"):
        READERS[reader](path)


def test_a_checkpoint_is_replaced_not_copied_over_wherever_temporary_files_lie(tmp_path, monkeypatch):
    """As on clusters, where TMPDIR is a local disk: a file that comes from there is copied, and can be cut off."""
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = tmp_path / "run/last.ckpt"
    WholeCheckpoints().save_checkpoint(content(1.0), path)
    replace = Path.replace

    def killed(file: Path, target: Path) -> None:
        assert file.parent == target.parent
        assert same(read_checkpoint(str(path)), content(1.0))  # all is written, and the one before still stands there
        assert same(read_checkpoint(str(file)), content(2.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint(content(2.0), path)
    assert same(read_checkpoint(str(path)), content(1.0))
    monkeypatch.setattr(Path, "replace", replace)
    WholeCheckpoints().save_checkpoint(content(2.0), path)
    assert same(read_checkpoint(str(path)), content(2.0))
    assert list(path.parent.iterdir()) == [path]
