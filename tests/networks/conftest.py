import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _one_rank(rank: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)  # threads of the parent's pool do not survive a fork
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(function(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    # Maps this small are slower on several threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[[Callable[[int], Any]], list[Any]]:
    """Runs a function of the rank in two processes; gives what each returned (tensors and nests of them)."""

    def run(function: Callable[[int], Any]) -> list[Any]:
        mp.start_processes(_one_rank, args=(function, tmp_path), nprocs=2, start_method="fork")
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return run
