"""The pass for thresholds over maps of Cityscapes' size: its memory does not grow with their number."""

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from itertools import islice

import pytest
import torch

from sfda.pseudo_labels.labelling import ImageConfidence, gather_histograms
from sfda.pseudo_labels.thresholds import class_thresholds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CLASSES, SIZE = 19, (1024, 2048)
CITYSCAPES = 2975
MB = 2**20
LEAST = 64
"""MB that count as growth. The least that could be kept of a map is a histogram, 300 kB and 150 MB for the fewest of
them; a map itself has 2 MB."""
ATTEMPTS = 4
"""Allocators round and scatter, by up to 200 MB and not each time; what is kept would show in all."""


def resident():
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MB if sys.platform == "darwin" else 1024)


def distinct_maps(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        predicted = torch.randint(0, CLASSES, SIZE, generator=generator, dtype=torch.uint8)
        yield predicted, torch.rand(SIZE, generator=generator) ** 0.1


def measure(images):
    """Number of maps → peak of Python's own memory and of the process."""
    maps, seen = list(distinct_maps(3)), {}

    def stream():
        for i in range(images):
            predicted, confidence = maps[i % len(maps)]
            scale = 0.5 + i / (2 * images)
            yield ImageConfidence.of(predicted, confidence * scale, confidence, CLASSES)
            if i + 1 in (1, 100, images):
                seen[i + 1] = (tracemalloc.get_traced_memory()[1] / MB, resident())

    tracemalloc.start()
    scaled, unscaled = gather_histograms(stream(), CLASSES)
    assert scaled.sum() == unscaled.sum() == images * SIZE[0] * SIZE[1]
    assert (class_thresholds(scaled, 0.15) < class_thresholds(unscaled, 0.15)).all()
    return seen


@pytest.mark.parametrize("count", [600, pytest.param(CITYSCAPES, marks=pytest.mark.release)])
def test_memory_does_not_grow_with_the_number_of_images(count):
    for _ in range(ATTEMPTS):
        python, process = growth(count)
        assert python < 0.1
        if process < LEAST:
            return
    pytest.fail(f"the process grew by {process:.0f} MB and more, {ATTEMPTS} times of {ATTEMPTS}")


def growth(count):
    """MB by which Python's own memory and the process grow between 100 maps and `count`."""
    # A process of its own, with one heap that glibc leaves as it is: what pytest has left of a heap is in pieces.
    heap = {"MALLOC_MMAP_THRESHOLD_": str(32 * MB), "MALLOC_TRIM_THRESHOLD_": str(4096 * MB)}
    environment = {**os.environ, **heap}
    done = subprocess.run(
        [sys.executable, __file__, str(count)], env=environment, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    for images, (python, process) in seen.items():
        print(f"{images} maps: peak of {python:.2f} MB in Python's objects, {process:.1f} MB resident")
    return [after - before for before, after in zip(*islice(seen.values(), 1, 3), strict=True)]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
