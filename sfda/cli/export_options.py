"""The options of ``sfda export``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda export``."""
    found = argparse.ArgumentParser(
        prog="sfda export",
        description="Write the selected checkpoint of a run as one file that predicts without sfda. In: RGB images in "
        "[0, 1], float32 (B, 3, H, W), any number of any size. Out: probabilities (B, C, H, W) of the run's scored "
        "classes; resizing, normalisation, padding, views and calibration are inside. Names and colours of the classes "
        "and the run are in the file's metadata. The file is compared with PyTorch before it is kept.",
    )
    found.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    kinds = "onnx (ONNX Runtime and others), or pt2 (torch.export.load, no other code)"
    found.add_argument("--format", required=True, choices=("onnx", "pt2"), help=kinds)
    found.add_argument("--out", type=Path, metavar="FILE", help="default: model.onnx or model.pt2 in the run folder")
    compared = "an image or a folder to compare with (default: images of the run's target, or random ones)"
    found.add_argument("--images", type=Path, help=compared)
    return found
