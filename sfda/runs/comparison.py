"""``sfda compare``: experiments side by side, each after what it starts from."""

import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from rich.console import Console
from rich.text import Text

from sfda.errors import UserError
from sfda.processes import preload
from sfda.progress import status, table_console
from sfda.runs.arguments import SOURCE_CHECKPOINT
from sfda.runs.engine import Stage, fit, has_fit, score
from sfda.runs.experiment import find_fragment, leaves, resolve
from sfda.runs.run import Row, Run
from sfda.runs.side_by_side import draw_side_by_side
from sfda.runs.tables import COLUMNS, as_sentence, as_table, check_columns, unknown_columns, write_results
from sfda.runs.wandb_group import log_comparison
from sfda.yaml_files import read_mapping

Stages = dict[tuple[str, int], Stage]
_NEEDED = {"benchmark", "experiments", "seeds"}
_OPTIONAL = {"prepare", "options", "columns"}


@dataclass(frozen=True)
class Comparison:
    """A compare file: which experiments of one benchmark stand side by side, with which seeds.

    Attributes:
        benchmark: Folder of the experiments.
        experiments: Their names.
        seeds: Every experiment is run with each.
        prepare: ``sfda`` commands that are run first.
        options: Options that every run gets, such as another source domain.
        columns: Columns of the table, names in ``result.json``.
    """

    benchmark: str
    experiments: tuple[str, ...]
    seeds: tuple[int, ...]
    prepare: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    columns: tuple[str, ...] = COLUMNS


def read_comparison(name: str) -> Comparison:
    """Read a compare file, a path or a name among the project's configs.

    Raises:
        UserError: no such file, or it says something that a compare file does not have.
    """
    path = find_fragment(name)
    content = read_mapping(path)
    if not set(content) >= _NEEDED or set(content) - _NEEDED - _OPTIONAL:
        needed, optional = (", ".join(sorted(keys)) for keys in (_NEEDED, _OPTIONAL))
        raise UserError(f"{path}: a compare file has the keys {needed}, and may have {optional}")
    for key, kind in (("experiments", str), ("seeds", int), ("prepare", str), ("columns", str)):
        entries = content.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, kind) for entry in entries):
            raise UserError(f"{path}: `{key}` must be a list of {kind.__name__}")
        if len(set(entries)) != len(entries) or (key in content and not entries and key != "prepare"):
            raise UserError(f"{path}: `{key}` must name at least one, and none twice")
    options = content.get("options", {})
    if not isinstance(options, Mapping):
        raise UserError(f"{path}: `options` must be nested like a config: {{data: {{init_args: …}}}}")
    check_columns(str(path), content.get("columns", ()))
    given = {
        f"--{key}": value if isinstance(value, str) else json.dumps(value) for key, value in leaves(options) if key
    }
    lists = {key: tuple(content[key]) for key in ("experiments", "seeds", "prepare", "columns") if key in content}
    return Comparison(content["benchmark"], **lists, options=tuple(itertools.chain(*given.items())))


def plan(comparison: Comparison, out: Path) -> Stages:
    """Every stage of a comparison by experiment and seed, those it depends on included, each after what it needs.

    Raises:
        UserError: there is no such experiment, or experiments need each other in a circle.
    """
    ordered: Stages = {}

    def add(name: str, seed: int, asked_by: tuple[str, ...]) -> None:
        if name in asked_by:
            raise UserError(f"experiments need each other in a circle: {' → '.join((*asked_by, name))}")
        if (name, seed) in ordered:
            return
        full_name = f"{comparison.benchmark}/{name}"
        words = [full_name, "--seed_everything", str(seed), *comparison.options]
        if (source := resolve(full_name).source) is not None:
            add(source, seed, (*asked_by, name))
            words += [SOURCE_CHECKPOINT, str(ordered[source, seed].run.selected)]
        ordered[name, seed] = Stage(out, f"{name}/seed{seed}", tuple(words))

    for seed in comparison.seeds:
        for name in comparison.experiments:
            add(name, seed, ())
    return ordered


def compare(
    config: str,
    out: Path,
    run_here: Callable[[Sequence[str]], int],
    write_page: Callable[[Path, str], Path],
    logger: str | None = None,
) -> int:
    """Run the experiments of a compare file in the order of their dependencies and print their table.

    Every command is a process of its own; what is finished is not run again, what was interrupted is resumed.

    Args:
        config: The compare file.
        out: Folder of all runs, ``results.json``, ``results.csv`` and ``side_by_side.png``.
        run_here: Runs a command in this process: what draws or fetches data needs no torch.
        write_page: Writes the report of this folder, under a title, and gives its path.
        logger: Fragment of a logger that every run gets when it begins; it is no part of a run's settings. That of W&B
            is given the page and the table, too.

    Returns:
        The exit status.

    Raises:
        UserError: the compare file is not as it should be, a stage failed, or settings changed since it was run.
    """
    console = table_console()
    comparison = read_comparison(config)
    stages = plan(comparison, out)
    for stage in stages.values():
        stage.run.check(stage.settings())
    begun = time.monotonic()
    if not all(stage.run.is_finished for stage in stages.values()):
        preload()
    for command in comparison.prepare:
        _prepare(console, command, run_here)
    with status(console, "loading PyTorch"):  # which the classes need to say whether they have a fit
        fitted = [stage.run.is_finished or has_fit(stage) for stage in stages.values()]
    for number, ((name, seed), stage) in enumerate(stages.items(), start=1):
        title = f"{number}/{len(stages)} {name} seed {seed}"
        if fitted[number - 1]:
            fit(console, stage, title, logger)
        if name in comparison.experiments:
            score(console, stage, title, logger)
            console.print(Text(f"  {name}: {as_sentence(stage.run.row())}", style="bold"), soft_wrap=True)
    rows = [stages[name, seed].run.row() for name in comparison.experiments for seed in comparison.seeds]
    write_results(rows, out)
    console.print(as_table(rows, comparison.columns))
    for remark in unknown_columns(rows, comparison.columns):
        console.print(Text(remark, style="yellow"))
    console.print(f"{time.monotonic() - begun:.0f} s; runs, pictures and results.json are in {out}", style="dim")
    page = write_page(out, Path(config).stem)
    if logger is not None:
        log_comparison(logger, out, rows, [page, out / "results.json"])
    console.print(f"Open {page}: scores with intervals, and the same images for all", highlight=False, soft_wrap=True)
    _point_on(console, rows, out)
    return 0


def _prepare(console: Console, command: str, run_here: Callable[[Sequence[str]], int]) -> None:
    console.print(Text(f"$ sfda {command}", style="cyan"), soft_wrap=True)
    begun = time.monotonic()
    if run_here(shlex.split(command)) != 0:
        raise UserError(f"`sfda {command}` failed, see above")
    console.print(f"✓ {command}  {time.monotonic() - begun:.0f} s")


def _point_on(console: Console, rows: Sequence[Row], out: Path) -> None:
    """The one picture to open, and the next command to type."""
    if (picture := draw_side_by_side(rows, out)) is not None:
        console.print(f"Open {picture}: image, truth, and what each model sees", highlight=False, soft_wrap=True)
    adapted = [row for row in rows if row["source_free"] and not row["labels_read"] and row["adapt_seconds"]]
    if adapted:
        run = Run(Path(str(adapted[-1]["config"])).parent)
        sfda = "sfda" if which("sfda") else sys.argv[0]
        command = f"{sfda} predict --run {run.folder} --images YOUR_PHOTOGRAPHS --out predictions"
        console.print(f"Next: {command}", highlight=False, soft_wrap=True)
