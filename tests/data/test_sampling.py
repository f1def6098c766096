import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.data.sampling import EvaluationSampler, TrainingSampler


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 4), st.integers(0, 5))
def test_passes_are_permutations_and_epochs_cut_them(size, per_epoch, epochs, seed):
    drawn = [pair for epoch in range(epochs) for pair in TrainingSampler(size, per_epoch, seed, epoch)]
    assert [draw for _, draw in drawn] == list(range(epochs * per_epoch))
    indices = [index for index, _ in drawn]
    for start in range(0, len(indices) - size + 1, size):
        assert sorted(indices[start : start + size]) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(4, 90), st.integers(1, 4), st.integers(0, 3))
def test_ranks_share_the_epoch_evenly(size, per_epoch, ranks, epoch):
    alone = list(TrainingSampler(size, per_epoch, 7, epoch))
    parts = [list(TrainingSampler(size, per_epoch, 7, epoch, ranks, rank)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {per_epoch // ranks}
    assert sorted(pair for part in parts for pair in part) == sorted(alone[: per_epoch - per_epoch % ranks])


def test_set_epoch_gives_what_a_fresh_sampler_gives():
    sampler = TrainingSampler(10, 10, seed=1)
    first = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) == list(TrainingSampler(10, 10, seed=1, epoch=3)) != first
    assert len({tuple(i for i, _ in TrainingSampler(10, 10, seed)) for seed in range(5)}) == 5


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 50), st.integers(1, 8))
def test_every_image_is_scored_exactly_once(size, ranks):
    parts = [list(EvaluationSampler(size, ranks, rank)) for rank in range(ranks)]
    assert sorted(np.concatenate([np.array(part, dtype=int) for part in parts])) == list(range(size))
    assert all(len(part) == len(EvaluationSampler(size, ranks, rank)) for rank, part in enumerate(parts))


def test_lightning_leaves_both_samplers_alone():
    from torch.utils.data import DistributedSampler

    assert isinstance(TrainingSampler(4, 4, 0), DistributedSampler)
    assert isinstance(EvaluationSampler(4), DistributedSampler)


@pytest.mark.parametrize("per_epoch", [7, 20])
def test_an_epoch_may_be_shorter_or_longer_than_the_data_set(per_epoch):
    assert len(TrainingSampler(10, per_epoch, 0)) == per_epoch
