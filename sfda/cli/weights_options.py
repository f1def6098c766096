"""The options of ``sfda weights``. Imports no torch."""

import argparse
from pathlib import Path

from sfda.cli.source_options import add_arguments


def parser() -> argparse.ArgumentParser:
    """``sfda weights inspect`` and ``sfda weights import``."""
    found = argparse.ArgumentParser(prog="sfda weights", description="Files of weights from anywhere.")
    commands = found.add_subparsers(dest="command", required=True)
    text = "what a file of weights holds and, with --network, how it fits that network; nothing in it is run"
    inspected = commands.add_parser("inspect", help=text, description=text)
    text = "make a checkpoint of sfda of it, OUT.ckpt, and OUT.yaml, which `sfda fit --config` takes"
    imported = commands.add_parser("import", help=text, description=text)
    imported.add_argument("--out", type=Path, required=True, metavar="OUT.ckpt")
    for command in (inspected, imported):
        command.add_argument("file", type=Path, help="torch (old or new), safetensors, or a folder of Hugging Face")
        add_arguments(command)
    return found
