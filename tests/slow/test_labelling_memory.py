"""The pass for thresholds over Cityscapes' 2975 training images at full size: its memory does not grow."""

import resource
import sys
import tracemalloc

import pytest
import torch

from sfda.pseudo_labels.labelling import ImageConfidence, gather_histograms
from sfda.pseudo_labels.thresholds import class_thresholds

pytestmark = pytest.mark.slow
CLASSES, IMAGES, SIZE = 19, 2975, (1024, 2048)
MB = 2**20


def resident():
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MB if sys.platform == "darwin" else 1024)


def test_memory_does_not_grow_with_the_number_of_images():
    generator = torch.Generator().manual_seed(0)
    distinct = [
        (
            torch.randint(0, CLASSES, SIZE, generator=generator, dtype=torch.uint8),
            torch.rand(SIZE, generator=generator) ** 0.1,
        )
        for _ in range(3)
    ]
    seen = {}

    def stream():
        for i in range(IMAGES):
            predicted, confidence = distinct[i % len(distinct)]
            scale = 0.5 + i / (2 * IMAGES)
            yield ImageConfidence.of(predicted, confidence * scale, confidence, CLASSES)
            if i + 1 in (1, 100, IMAGES):
                seen[i + 1] = (tracemalloc.get_traced_memory()[1] / MB, resident())

    start = resident()
    tracemalloc.start()
    scaled, unscaled = gather_histograms(stream(), CLASSES)
    tracemalloc.stop()
    assert scaled.sum() == unscaled.sum() == IMAGES * SIZE[0] * SIZE[1]
    assert (class_thresholds(scaled, 0.15) < class_thresholds(unscaled, 0.15)).all()
    for images, (python, process) in seen.items():
        print(f"{images:4} maps: peak {python:.2f} MB of Python's own, {process:.1f} MB resident, {start:.1f} before")
    assert seen[IMAGES][0] - seen[100][0] < 0.1
    assert seen[IMAGES][1] - seen[100][1] < 8
