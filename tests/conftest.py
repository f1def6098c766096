import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sfda.cli import main
from sfda.data.streets import write_streets
from tiny_runs import tiny_arguments


def _one_rank(rank: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)  # threads of the parent's pool do not survive a fork
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(function(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


os.environ["WANDB_MODE"] = "offline"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
torch.set_num_threads(1)  # maps this small are slower on several threads


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded town at 32x64, a few images a domain."""
    root = tmp_path_factory.mktemp("town")
    counts = {domain: {"train": 16, "val": 6} for domain in ("gta5", "synthia", "cityscapes")}
    counts["drift"] = {"val": 6}
    write_streets(root, height=32, width=64, counts=counts)
    return root


@pytest.fixture
def sfda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the command line in this process, in a working directory of its own; gives the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    monkeypatch.setattr("sys.argv", ["sfda"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def source_model(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the tiny network after a few steps on the town's source domain."""
    folder = tmp_path_factory.mktemp("source") / "run"
    arguments = ["fit", *tiny_arguments("source_training", town), "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        assert main(arguments) == 0
    return folder / "selected.ckpt"


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[[Callable[[int], Any]], list[Any]]:
    """Runs a function of the rank in two processes; gives what each returned (tensors and nests of them)."""

    def run(function: Callable[[int], Any]) -> list[Any]:
        mp.start_processes(_one_rank, args=(function, tmp_path), nprocs=2, start_method="fork")
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return run


@pytest.fixture(scope="session")
def value_net_model(town: Path, source_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the same network with a value net."""
    folder = tmp_path_factory.mktemp("value_net") / "run"
    arguments = ["fit", *tiny_arguments("value_net_training", town, source_model), "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        assert main(arguments) == 0
    return folder / "selected.ckpt"
