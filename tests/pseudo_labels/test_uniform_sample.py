from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sfda.pseudo_labels.uniform_sample import UniformSample


def numbered_stream(batch_sizes):
    """Batches (1, 2, 1, n) whose first channel numbers the pixels of the stream."""
    start = 0
    for size in batch_sizes:
        number = torch.arange(start, start + size, dtype=torch.float32)
        yield torch.stack([number, torch.ones(size)])[None, :, None]
        start += size


def drawn(batch_sizes, capacity, seed):
    sample = UniformSample(capacity, (seed,))
    for batch in numbered_stream(batch_sizes):
        sample.add(batch)
    return sample.vectors[:, 0].int().tolist()


@pytest.mark.parametrize("batch_sizes", [[40], [10, 10, 10, 10], [1, 3, 29, 7]])
def test_every_pixel_is_equally_likely_to_be_in_the_sample(batch_sizes):
    runs, capacity = 1500, 8
    counts = Counter()
    for seed in range(runs):
        numbers = drawn(batch_sizes, capacity, seed)
        assert len(set(numbers)) == capacity  # without replacement
        counts.update(numbers)
    observed = [counts[number] for number in range(40)]
    # Drawn without replacement, so the true statistic is a little smaller than a chi-square.
    assert chisquare(observed).pvalue > 1e-3
    assert abs(sum(n for n in range(20) for _ in range(counts[n])) / (runs * capacity) - 19 * 20 / 2 / 40) < 0.2


def test_a_sample_of_two_processes_is_uniform_over_all_pixels(on_two_ranks):
    """The first process sees nine times as many pixels as the second."""

    def count(rank):
        kept = torch.zeros((), dtype=torch.int64)
        for seed in range(40):
            sample = UniformSample(50, (seed, rank))
            for batch in numbered_stream([300, 600] if rank == 0 else [100]):
                sample.add(batch)
            kept += len(sample.of_all_ranks(torch.device("cpu")))
        return kept

    larger, smaller = on_two_ranks(count)
    assert larger.item() == 40 * 50
    assert 0.8 < 9 * smaller.item() / larger.item() < 1.2


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6), capacity=st.integers(1, 60))
def test_the_sample_keeps_its_size(sizes, capacity):
    sample = UniformSample(capacity, (0,))
    seen = 0
    for batch in numbered_stream(sizes):
        sample.add(batch)
        seen += batch.shape[-1]
        assert sample.vectors.shape == (min(capacity, seen), 2)
    assert set(sample.vectors[:, 0].tolist()) <= set(range(seen))


def test_the_sample_is_that_of_its_seed():
    assert drawn([30, 30], 10, 1) == drawn([30, 30], 10, 1) != drawn([30, 30], 10, 2)


def test_vectors_of_the_sample_are_those_of_pixels():
    probabilities = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).softmax(1)
    sample = UniformSample(20, (0,))
    sample.add(probabilities)
    first = {tuple(vector) for vector in sample.vectors.numpy()}
    assert first <= {tuple(pixel) for pixel in probabilities.movedim(1, 3).reshape(-1, 4).numpy()}
    sample.clear()
    sample.add(probabilities)
    assert sample.vectors.shape == (20, 4)
    assert {tuple(vector) for vector in sample.vectors.numpy()} != first  # other numbers are drawn at every step
