"""The options of ``sfda report``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda report``."""
    found = argparse.ArgumentParser(
        prog="sfda report",
        description="Write one HTML file about finished runs, made anywhere: scores with intervals over images, "
        "differences per class, the same images as every run labels them, calibration and cost. It needs no network "
        "and nothing beside it. Runs that `sfda validate` has scored are read alone; no model is run.",
    )
    found.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders that hold some")
    found.add_argument("--out", type=Path, default=Path("report.html"), help="the file (default: report.html)")
    found.add_argument("--title", help="what stands on top (default: the names of the folders)")
    return found
