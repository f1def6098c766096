"""Memory of processes that are started for one measurement each: a peak is never undone."""

import multiprocessing
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    if STATUS.exists():  # `getrusage` of Linux counts what the parent had when it started this process
        found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
        assert found is not None
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(function: Callable[..., float], *arguments: Any) -> float:
    """What the function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
