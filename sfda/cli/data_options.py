"""The options of ``sfda data``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda data``."""
    found = argparse.ArgumentParser(prog="sfda data", description="Data sets on disk.")
    commands = found.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="open every file of a data config and list all faults")
    check.add_argument("--config", required=True, help="data/streets.yaml, an experiment's base.yaml, a run's config")
    cache = commands.add_parser(
        "cache", help="keep decoded copies beside the files: training reads them many times faster"
    )
    cache.add_argument("--config", required=True, help="as for check")
    streets = commands.add_parser("streets", help="write the embedded town in the layouts of the real data sets")
    streets.add_argument("--out", required=True, type=Path, help="folder for gta5/, synthia/ and cityscapes/")
    streets.add_argument("--height", type=int, default=128)
    streets.add_argument("--width", type=int, default=256)
    return found
