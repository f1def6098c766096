"""The options of ``sfda audit``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda audit``."""
    found = argparse.ArgumentParser(
        prog="sfda audit",
        usage="sfda audit EXPERIMENT [OPTIONS]  or  sfda audit --run DIR [OPTIONS]",
        description="Adapt for a few steps and score, as trainer/smoke.yaml says, in a temporary folder, and count the "
        "files that the process and its loaders' workers open. Adapting may open what the method's `needs` declare, "
        "scoring the validation sets; anything else of the data sets is shown with its stack. Further options are "
        "those of `sfda fit`. Exit status: 0, or 1 where a file was opened that may not be.",
        allow_abbrev=False,
    )
    found.add_argument("--run", type=Path, metavar="DIR", help="folder of a run, whose config.yaml is audited")
    return found
