"""What `sfda audit` counts, and how it prints it."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfda.data.kinds_of_files import KINDS, Kind
from sfda.methods import Method
from sfda.opened import Opened
from sfda.runs.experiment import configs_folder

CHECKPOINTS = "checkpoints"
PSEUDO_LABELS = "its own pseudo-labels"
OWN = "other files of the run"
WORKING = "other files in the working folder"
ELSEWHERE = "files elsewhere"
LIBRARIES = "code, libraries and system"
NOT_JUDGED = (CHECKPOINTS, PSEUDO_LABELS, OWN, WORKING, ELSEWHERE, LIBRARIES)
MODELS = (".ckpt", ".pt", ".pth", ".safetensors")
PACKAGE = str(Path(__file__).parents[1])
PYTHON = (sys.prefix, sys.base_prefix, PACKAGE, str(configs_folder()))
SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/run", "/sys", "/usr", "/var")
SHOWN = 5


@dataclass
class Phase:
    """What is opened while adapting, or while scoring.

    Attributes:
        name: ``adapting`` or ``scoring``.
        may: Whether a kind of file may be opened.
        files: The files by what they are: a `Kind`, or a word of `NOT_JUDGED`.
        forbidden: What may not be opened and was, in order, with its kind.
    """

    name: str
    may: Callable[[Kind], bool]
    files: dict[Kind | str, set[str]] = field(default_factory=dict)
    forbidden: list[tuple[Opened, Kind]] = field(default_factory=list)

    def add(self, opened: Opened, kind: Kind | str) -> None:
        """Sort one file in; a folder, which has names alone, matters where it may not be looked into."""
        if isinstance(kind, Kind) and not self.may(kind):
            self.forbidden.append((opened, kind))
        if not opened.is_folder:
            self.files.setdefault(kind, set()).add(opened.path)


def other_kind(path: str, place: Path) -> str:
    """What a file is that belongs to no data set."""
    file = Path(path)
    if file.is_relative_to(place):
        return PSEUDO_LABELS if "pseudo_labels" in file.parts else OWN
    if file.suffix in MODELS:
        return CHECKPOINTS
    if _is_of_python(path) or file.suffix in (".py", ".pyc"):
        return LIBRARIES
    if file.is_relative_to(Path.cwd()):
        return WORKING
    system = any(file.is_relative_to(folder) for folder in (*SYSTEM, tempfile.gettempdir()))
    return LIBRARIES if system or path.startswith(f"{Path.home()}/.") else ELSEWHERE


def _is_of_python(path: str) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in PYTHON)


def print_table(phases: Sequence[Phase], console: Console) -> None:
    """Print how many files of each kind were opened, and the names of those that nobody would expect."""
    table = Table("files opened while", box=SIMPLE_HEAD)
    for phase in phases:
        table.add_column(phase.name, justify="right")
        table.add_column("allowed")
    unlisted = [kind for phase in phases for kind in phase.files if kind not in KINDS and isinstance(kind, Kind)]
    for kind in dict.fromkeys((*KINDS, *unlisted)):
        cells: list[Text] = []
        for phase in phases:
            count, may = len(phase.files.get(kind, ())), phase.may(kind)
            style = "bold red" if count and not may else ""
            cells += [Text(str(count), style), Text("yes" if may else "no", style)]
        table.add_row(str(kind), *cells)
    table.add_section()
    for word in NOT_JUDGED:
        counts = (str(len(phase.files.get(word, ()))) for phase in phases)
        table.add_row(word, *(cell for count in counts for cell in (count, "")))
    console.print(table)
    for word in (CHECKPOINTS, ELSEWHERE):
        if names := sorted({name for phase in phases for name in phase.files.get(word, ())}):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            console.print(Text(f"{word}: {', '.join(names[:SHOWN])}{more}"), soft_wrap=True)


def print_verdict(method: type[Method], phases: Sequence[Phase], console: Console) -> int:
    """Say whether all is as declared; otherwise show the first file of each phase that is not, and who opened it."""
    declared = f"adapting may open {method.needs}, as {method.__name__} declares; scoring, the validation sets"
    for phase in phases:
        if phase.forbidden:
            opened, kind = phase.forbidden[0]
            doing = "lists" if opened.is_folder else "opens"
            console.print(Text(f"{phase.name} {doing} {kind}: {opened.path}", style="bold red"), soft_wrap=True)
            console.print(Text(_describe_stack(opened)), soft_wrap=True)
    if paths := {opened.path for phase in phases for opened, _ in phase.forbidden}:
        text = f"✗ {declared}: files or folders opened beyond that: {len(paths)}"
        console.print(Text(text, style="bold red"), soft_wrap=True)
        return 1
    console.print(Text(f"✓ {declared}: nothing else of the data was opened", style="bold green"), soft_wrap=True)
    return 0


def _describe_stack(opened: Opened) -> str:
    """Who opened a file, outermost first, without the libraries."""
    if not opened.stack:
        return (
            "by no Python code: by a library in C, by a program that was started, or by another process on this "
            "machine; run the audit where nothing else reads these files"
        )
    ours = [frame for frame in opened.stack if frame[0].startswith(PACKAGE) or not _is_of_python(frame[0])]
    lines = traceback.format_list([traceback.FrameSummary(file, number, name) for file, number, name in ours])
    where = "in a worker of a loader" if opened.process != os.getpid() else "in the process itself"
    return f"{where}, called by (without the libraries):\n{''.join(lines).rstrip()}"
