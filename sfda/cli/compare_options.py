"""The options of ``sfda compare``. Imports no torch."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda compare``."""
    found = argparse.ArgumentParser(prog="sfda compare", description="Run experiments side by side.")
    found.add_argument("config", help="a file under configs/compare, for example compare/demo.yaml, or your own")
    found.add_argument("--out", required=True, type=Path, help="folder of all runs, results.json and results.csv")
    add_logger(found)
    return found


def add_logger(parser: argparse.ArgumentParser) -> None:
    """The option that gives every run of a command a logger."""
    text = "a further logger of every run that is begun, logger/wandb.yaml for example; no part of a run's settings"
    parser.add_argument("--trainer.logger", dest="logger", metavar="FILE", help=text)
