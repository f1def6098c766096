"""Which image comes when: a pure function of (seed, epoch), equal on every rank and after every resume.

Both samplers subclass `torch.utils.data.DistributedSampler`, for one process too: Lightning then leaves them alone
instead of wrapping them in a sampler of its own, which would pad the validation set with duplicates.
"""

import os
from collections.abc import Iterator

import numpy as np
from torch.utils.data import DistributedSampler


def run_seed() -> int:
    """The seed of this run, as ``seed_everything`` set it (0 where it never ran)."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class TrainingSampler(DistributedSampler[int]):
    """Endless shuffled passes over a data set, cut into epochs of a fixed number of samples.

    Epoch e takes the samples e·n to (e+1)·n of the concatenation of one permutation per pass, so that an epoch may be
    shorter or longer than the data set. Yields ``(index, draw)``: the draw numbers all samples of a run and seeds the
    random transform of its sample, so that no worker, rank or resume changes what is drawn.

    An epoch has `samples_per_epoch` over all `num_replicas` processes; what does not divide by them is left out. The
    first one is `epoch`, since workers prefetch before Lightning calls `set_epoch`.
    """

    def __init__(
        self, dataset_size: int, samples_per_epoch: int, seed: int, epoch: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(range(dataset_size), num_replicas=num_replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.dataset_size = dataset_size
        self.samples_per_epoch = samples_per_epoch - samples_per_epoch % num_replicas
        self.stride = samples_per_epoch
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples_per_epoch // self.num_replicas

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        start = self.epoch * self.stride
        permutation_of, permutation = -1, np.empty(0, dtype=np.int64)
        for draw in range(start + self.rank, start + self.samples_per_epoch, self.num_replicas):
            number, position = divmod(draw, self.dataset_size)
            if number != permutation_of:
                permutation_of = number
                permutation = np.random.default_rng([self.seed, number]).permutation(self.dataset_size)
            yield int(permutation[position]), draw


class EvaluationSampler(DistributedSampler[int]):
    """Every image exactly once over all ranks, in order, without padding; ranks may be uneven by one."""

    def __init__(self, dataset_size: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(range(dataset_size), num_replicas=num_replicas, rank=rank)  # type: ignore[arg-type]
        self.indices = range(rank, dataset_size, num_replicas)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
