"""A training step of DA-Cal, virtual step and temperatures included, against the same step of its mean teacher."""

import multiprocessing
import resource

import torch

from report import milliseconds, row
from sfda.methods.da_cal import DACal
from sfda.methods.mean_teacher import MeanTeacher

BATCH, SIZE, CLASSES = 8, (96, 192), 19
NETWORK = "smp:DeepLabV3Plus/mobilenet_v2"


def peak_mb():
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind):
    """Milliseconds of forward and backward, and by how many MB they raise the peak memory of a fresh process."""
    torch.set_num_threads(1)
    options = {"network": NETWORK, "num_classes": CLASSES}
    method = DACal(**options) if kind == "da_cal" else MeanTeacher(labels="soft", **options)
    method.log_dict = lambda *_, **__: None
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.rand(BATCH, 3, *SIZE, generator=generator) for name in ("image", "strong")}
    labels = torch.randint(0, CLASSES, (BATCH, *SIZE), generator=generator)
    valid = torch.ones(BATCH, *SIZE, dtype=torch.bool)
    batch = {"source": {**images, "label": labels, "valid": valid}, "target": {**images, "valid": valid}}

    def step():
        method.zero_grad()
        torch.stack(list(method.compute_losses(batch).values())).sum().backward()

    before = peak_mb()
    time = milliseconds(step)
    return time, peak_mb() - before


def test_bilevel_step():
    context = multiprocessing.get_context("spawn")  # each in a process of its own: a peak is never undone
    results = {}
    for kind in ("da_cal", "mean_teacher"):
        with context.Pool(1) as pool:
            results[kind] = pool.apply(measure, (kind,))
    (ours, ours_mb), (reference, reference_mb) = results["da_cal"], results["mean_teacher"]
    row(f"DA-Cal step, {BATCH} x {SIZE[0]} x {SIZE[1]}", ours, "mean teacher step, soft labels", reference)
    print(f"{'':44} {ours_mb:9.0f} MB | {'':42} {reference_mb:9.0f} MB | {reference_mb / ours_mb:6.1f}x")
    assert ours > reference > 0
    assert ours_mb > 0
