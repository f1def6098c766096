"""The options of ``sfda predict``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda predict``."""
    found = argparse.ArgumentParser(
        prog="sfda predict",
        description="Label images and videos of your own. For each image, OUT holds NAME_trainIds.png (train ids, at "
        "the image's size), NAME_overlay.png and NAME_confidence.png (white = 1); for each video, NAME_overlay.mp4 "
        "(its size and rate, no sound) and NAME/000123_trainIds.png of every frame, from 0. Where the run brings "
        "images to no size, one of more than 4 megapixels is predicted in windows of 1024 x 1024 that overlap by 256 "
        "or more, their probabilities blended. The same command goes on where it was interrupted.",
    )
    found.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    found.add_argument(
        "--images",
        required=True,
        type=Path,
        help="an image, a video (.mp4 .avi .mov .mkv .webm), or a folder of them at any depth",
    )
    found.add_argument("--out", required=True, type=Path, help="folder of the predictions, of this checkpoint alone")
    found.add_argument("--checkpoint", type=Path, help="default: selected.ckpt of the run")
    label_ids = "write only NAME_labelIds.png with the label ids of Cityscapes, as its official evaluation reads them"
    found.add_argument("--label-ids", action="store_true", help=label_ids)
    return found
