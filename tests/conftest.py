import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything is imported: maps this small are slower on several threads, and the tests share the cores.
os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", NO_ALBUMENTATIONS_UPDATE="1", COLUMNS="80")

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import settings

from commands import Done, run_sfda
from sfda.cli.main import main
from sfda.town import write_streets
from tiny_runs import tiny_arguments, watched


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of two processes run one after the other, so that two cores are never shared by more than three."""
    for item in items:
        if "/ddp/" in item.nodeid or "two_processes" in item.nodeid or "two_ranks" in item.nodeid:
            item.add_marker(pytest.mark.xdist_group("two_processes"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws it draws again next time, so that none fails by chance once in many."""
    torch.manual_seed(0)


def _one_rank(rank: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)  # threads of the parent's pool do not survive a fork
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(function(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


torch.set_num_threads(1)
# The same examples on every machine; `--hypothesis-profile=default` searches for others.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


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


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Done]:
    """Runs the command line in a process of its own, in a working directory of its own."""
    return lambda *words, **environment: run_sfda(tmp_path, *words, **environment)


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


@pytest.fixture
def ranks_at_fit_end(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Every rank of a fit leaves what it holds at its end; called, gives it for each of two ranks."""

    def leave(trainer: L.Trainer, method: L.LightningModule) -> None:
        content = {
            "state": method.state_dict(),
            "selected": [callback.best_model_path for callback in trainer.checkpoint_callbacks],
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        }
        torch.save(content, tmp_path / f"rank{trainer.global_rank}.pt")

    with watched("on_fit_end", leave):
        yield lambda: [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture
def states_of_ranks(
    ranks_at_fit_end: Callable[[], list[dict[str, Any]]],
) -> Callable[[], list[dict[str, torch.Tensor]]]:
    """The weights alone."""
    return lambda: [rank["state"] for rank in ranks_at_fit_end()]


@pytest.fixture(scope="session")
def value_net_model(town: Path, source_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the same network with a value net."""
    folder = tmp_path_factory.mktemp("value_net") / "run"
    arguments = ["fit", *tiny_arguments("value_net_training", town, source_model), "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        assert main(arguments) == 0
    return folder / "selected.ckpt"
