"""The options of ``sfda calibrate``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda calibrate``."""
    found = argparse.ArgumentParser(
        prog="sfda calibrate",
        description="Calibrate the selected checkpoint of a run without training it: a fit of its own, with the run's "
        "data and trainer. `sfda validate --run` scores the outcome. Further options are those of `sfda fit`.",
        allow_abbrev=False,
    )
    found.add_argument("--run", required=True, type=Path, help="folder of a finished run of any method")
    names = "temperature_scaling (reads labelled source images), pseudo_cal or label_calibration (unlabelled target "
    names += "images; the last changes which class is predicted)"
    found.add_argument("--with", required=True, dest="calibrator", metavar="NAME", help=names)
    default = "default: the run's folder with +NAME after the experiment: runs/B/EXPERIMENT+NAME/seedN"
    found.add_argument("--out", type=Path, help=default)
    return found
