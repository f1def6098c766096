"""The options of ``sfda sweep``. Imports no torch."""

import argparse
from pathlib import Path

from sfda.cli.compare_options import add_logger


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda sweep``."""
    found = argparse.ArgumentParser(
        prog="sfda sweep",
        description="Run trials of a W&B sweep file here, without an account, and print them, the best first. The same "
        "command goes on where it was interrupted; a larger N adds trials.",
    )
    found.add_argument("file", help="a file under configs/sweep, for example sweep/ada_bn.yaml, or your own")
    found.add_argument("--trials", type=_positive, help="how many (default: all of a grid)")
    found.add_argument("--out", type=Path, help="folder of all trials and results.json (default: runs/sweep/NAME)")
    found.add_argument("--seed", type=int, default=0, help="what random trials are drawn with; no run's own seed")
    add_logger(found)
    return found


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of trials")
    return int(text)
