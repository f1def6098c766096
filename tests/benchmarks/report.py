"""One printed row a benchmark: our time, a reference's time, and how many times faster ours is."""

import time

import torch


def milliseconds(function, repeats=5):
    """Best wall time of a call on one thread, after one call to warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        function()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * min(times)


def row(name, ours, reference_name, reference):
    """Print `ours` and `reference` (milliseconds) and their ratio."""
    print(
        f"\n{name:<44} {ours:9.2f} ms | {reference_name:<42} {reference:9.2f} ms | {reference / ours:6.1f}x", flush=True
    )
