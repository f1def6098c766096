"""`make bench` and `make bench-gpu`: all rows, or those of the files that are named, in one table.

python tests/benchmarks [--gpu] [scoring crops ...]
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

import torch
from rich.console import Console

from side_by_side import Row, Where, print_table

NAMES = tuple(path.stem.removeprefix("bench_") for path in sorted(Path(__file__).parent.glob("bench_*.py")))
GPU = [
    Where("cuda", network, bf16, size, batch=2)
    for network, size in (("deeplab_v2_resnet101", (512, 1024)), ("smp:Segformer/mit_b0", (512, 512)))
    for bf16 in (False, True)
]
"""At the papers' sizes; what needs no network is measured once."""


def measure(names: list[str], places: list[Where]) -> Iterator[Row]:
    """The rows of the named files; what is being measured stands on stderr."""
    for name in names:
        module = importlib.import_module(f"bench_{name}")
        for where in places if module.NEEDS_NETWORK else places[:1]:
            start = time.perf_counter()
            yield from module.rows(where)
            sys.stderr.write(f"{name} ({where}): {time.perf_counter() - start:.0f} s\n")


def main() -> int:
    """The exit status: 0 when all rows are met, 1 when not."""
    options = argparse.ArgumentParser(prog="make bench")
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    options.add_argument("--gpu", action="store_true", help="the same on a GPU, with and without bfloat16")
    said = options.parse_args()
    if unknown := set(said.names) - set(NAMES):
        options.error(f"{', '.join(sorted(unknown))}: of {', '.join(NAMES)}")
    if said.gpu and not torch.cuda.is_available():
        sys.stdout.write(
            "make bench-gpu measures on a CUDA device, and PyTorch finds none here: nothing was measured\n"
        )
        return 0
    torch.set_num_threads(1)
    names = said.names or list(NAMES)
    if said.gpu:
        names = [name for name in names if importlib.import_module(f"bench_{name}").ON_GPU]
    title = torch.cuda.get_device_name() if said.gpu else "one thread; medians of ours and the reference in turns"
    console = Console(width=max(Console().width, 150))
    return print_table(measure(names, GPU if said.gpu else [Where()]), title, console)


if __name__ == "__main__":
    sys.exit(main())
