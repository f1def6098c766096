"""The options of ``sfda judge``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda judge``."""
    found = argparse.ArgumentParser(
        prog="sfda judge",
        description="Compare finished runs with their source model: better, worse, or cannot tell. Without --labels by "
        "what can be known without any; with some labels by a paired interval of the mIoU.",
    )
    found.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    found.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="images of the target")
    found.add_argument(
        "--source", type=Path, metavar="RUN", help="run of the source model (default: what the runs started from)"
    )
    found.add_argument("--labels", type=Path, metavar="FOLDER", help="PNG label maps, named like the images")
    found.add_argument("--classes", metavar="FILE", help="class set of the label maps (default: what the runs score)")
    values = "what label maps in Cityscapes classes hold (default: what the runs read, or label_ids)"
    found.add_argument("--label-values", choices=("label_ids", "train_ids"), help=values)
    found.add_argument("--count", type=int, default=24, metavar="N", help="images that are looked at (default: 24)")
    found.add_argument(
        "--out", type=Path, metavar="FILE", help="write one HTML file: verdicts, and the same images for all models"
    )
    return found
