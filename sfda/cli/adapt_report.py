"""What ``sfda adapt`` prints: its plan before, its table after."""

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfda.files import read_json, write_whole
from sfda.progress import duration
from sfda.runs.adaptation import AUTO, SOUP, SOUP_STEPS, SOURCE_ONLY, Plan, averages_views
from sfda.runs.engine import Stage
from sfda.runs.run import Row, Run
from sfda.runs.tables import as_table

WITH_LABELS = ("target_miou", "target_ece", "target_nll", "target_view_agreement", "adapt_seconds")
WITHOUT_LABELS = (
    "target_view_agreement",
    "target_infomax",
    "target_entropy",
    "target_confidence",
    "target_class_coverage",
    "adapt_seconds",
)
FEW_CLASSES = 2.0
"""Below so many effective classes a model sees next to nothing in images of streets, or of anything else."""

LABELLED = {
    True: "scores of the labelled images; what adapts has seen others alone",
    False: "scores of the labelled images; what adapts has seen these images too, not their labels, since the others "
    "are too few",
}
UNLABELLED = (
    "without labels: agreement between views of an image, and InfoMax: the higher the better, of models that did not "
    "train on them (of single views, so that averaging them changes nothing); entropy and confidence say how sure a "
    "model is, not how right"
)


def print_plan(plan: Plan, console: Console, minutes: float) -> None:
    """How long each method is expected to take, and what it gets, of so many minutes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("plan")
    table.add_column("what it does")
    table.add_column("about", justify="right")
    for method in plan.methods:
        table.add_row(method, _what(plan, method), duration(plan.seconds(method)))
    console.print(table)
    height, width = plan.size
    line = f"images enter the network at {width}x{height}, {1000 * plan.pass_seconds:.0f} ms per image; "
    line += f"{plan.scored} images are scored; about {duration(plan.total())} in all"
    if plan.total() > 60 * minutes:
        line += f", which is the least and more than --minutes {minutes:g}"
    console.print(Text(line), soft_wrap=True)


def _what(plan: Plan, method: str) -> str:
    views = ", averaged over three sizes and their mirror images" if averages_views(method) else ""
    if method.startswith(SOURCE_ONLY):
        return f"the source model as it is{views}"
    if method.startswith(AUTO):
        return f"size of the images, BatchNorm statistics and colours, chosen on {plan.searched} images{views}"
    if method.startswith("ada_bn"):
        return f"BatchNorm statistics of {plan.gathered} images, mixed in as far as {plan.searched} images agree{views}"
    if method.startswith(SOUP):
        return (
            f"{SOUP_STEPS} steps of two networks{' from what auto has chosen' if AUTO in plan.methods else ''}{views}"
        )
    return f"up to {plan.steps} steps{views}"


def print_table(runs: Sequence[Run], console: Console, *, with_labels: bool, apart: bool) -> None:
    """Scores of all methods, of the source model first; `apart`: whether the labelled images were not adapted to."""
    table = as_table([run.row() for run in runs], WITH_LABELS if with_labels else WITHOUT_LABELS)
    table.title = None
    table.caption = LABELLED[apart] if with_labels else UNLABELLED
    console.print(table)


def warn_of_few_classes(row: Row, console: Console) -> None:
    """Say so where a source model, here its row, puts nearly all pixels into one class.

    Effective classes are exp H(mean p): 1 where all is one class, C where all are predicted equally often.
    """
    effective = math.exp(row["target_entropy"] + row["target_infomax"])
    if effective < FEW_CLASSES:
        text = (
            f"warning: the source model sees {effective:.1f} classes in these images (exp of the entropy of its mean "
            "prediction), which nothing here can mend: are preprocessing, classes and images the right ones?"
        )
        console.print(Text(text, style="yellow"), soft_wrap=True)


def finish(
    console: Console,
    said: argparse.Namespace,
    stages: Sequence[Stage],
    chosen: Stage,
    changed: float,
    seconds: float,
) -> None:
    """Say what is recommended and what can be done with it; ``commands.sh`` has all commands.

    Args:
        console: Where to.
        said: The options of ``sfda adapt``.
        stages: The runs.
        chosen: The one that is recommended.
        changed: Share of the pixels that have another class than the source model's.
        seconds: How long it all took.
    """
    out, run = chosen.out, chosen.run
    words = [
        f"{'keep the source model' if chosen is stages[0] else 'adapted model'}: {run.selected} ({chosen.name})",
        f"{100 * changed:.1f} % of the pixels change their class",
    ]
    words += _chosen(run)
    say(console, "; ".join(words), f"Open {out / 'before_after.png'}: before and after")
    commands = [line for stage in stages for line in _commands(stage)]
    labels = ["--labels", str(said.labels)] if said.labels else []  # whose classes the run knows
    further = [
        shlex.join(["judge", str(run.folder), "--images", str(said.images), *labels]),
        f"predict --run {run.folder} --images FOLDER --out predictions",
        f"export --run {run.folder} --format onnx",
    ]
    commands += [f"sfda {words}" for words in further]
    head = [
        "# What `sfda adapt` stood for. What is there is never overwritten: give another --out to run it again.",
        f"cd {shlex.quote(str(Path.cwd()))}",
    ]
    write_whole(out / "commands.sh", ("\n".join([*head, *commands]) + "\n").encode())
    slower = f" (--minutes {said.minutes:g}: slower than timed)" if seconds > 60 * said.minutes else ""
    say(console, f"{seconds:.0f} s{slower}. Every command that this stood for is in {out / 'commands.sh'}; next:")
    say(console, *(f"  sfda {words}" for words in further))


def _chosen(run: Run) -> list[str]:
    """What a method that chooses has chosen, in words."""
    if (report := run.folder / "auto.json").is_file():
        return [f"chosen: {read_json(report)['chosen']['candidate']}"]
    if not (report := run.folder / "ada_bn.json").is_file():
        return []
    alpha = read_json(report)["alpha"]
    if not alpha:
        return ["nothing is adapted: the source model's BatchNorm statistics are kept (α = 0)"]
    return [f"{100 * alpha:g} % of the target's BatchNorm statistics are mixed in"]


def _commands(stage: Stage) -> list[str]:
    """What a user would type for one method."""
    words = shlex.join(stage.words())
    if not stage.run.is_resumable:
        return [f"sfda validate {words}"]
    return [f"sfda fit {words}", f"sfda validate --run {shlex.quote(str(stage.run.folder))}"]


def say(console: Console, *lines: str) -> None:
    """Print lines, unbroken."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    console.file.flush()  # where it goes into a file, too
