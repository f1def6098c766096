"""The options of ``sfda adapt``. Imports no torch."""

import argparse
from pathlib import Path

from sfda.cli.source_options import add_arguments


def parser() -> argparse.ArgumentParser:
    """The options of ``sfda adapt``."""
    found = argparse.ArgumentParser(
        prog="sfda adapt",
        description="Adapt a model to a folder of unlabelled images: look both over, plan what fits into the time, run "
        "it, and show what came of it. Interrupted, the same command goes on.",
    )
    source = "weights of any project, a folder of Hugging Face, or a run folder or checkpoint of sfda"
    found.add_argument("--source", type=Path, required=True, metavar="FILE|FOLDER", help=source)
    found.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="images of the target, at any depth"
    )
    labels = "PNG label maps of some of the images, named like them; they score, nothing adapts to them"
    found.add_argument("--labels", type=Path, metavar="FOLDER", help=labels)
    classes = "class set of the label maps, and what is scored (default: the classes of the network)"
    found.add_argument("--classes", metavar="FILE", help=classes)
    values = "what label maps in Cityscapes classes hold (default: label_ids)"
    found.add_argument("--label-values", choices=("label_ids", "train_ids"), default="label_ids", help=values)
    methods = "auto (averaged views, and what Auto chooses without training), or names of methods, the best hope first"
    found.add_argument("--method", nargs="+", default=["auto"], metavar="NAME", help=methods)
    share = "how far what is kept of a method that trains goes from where it began to what was trained: 0 to 1, or auto"
    found.add_argument("--share", metavar="N|auto", help=f"{share} (default: 1, as published)")
    found.add_argument("--minutes", type=float, default=10, metavar="N", help="time that there is (default: 10)")
    found.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of all that is written")
    add_arguments(found.add_argument_group("what the source model does not say itself"))
    return found
