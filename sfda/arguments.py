"""From what a user types to what LightningCLI reads: experiment names, fragments, run folders.

Nothing here imports torch, so that mistakes are answered at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from sfda.errors import UserError
from sfda.yaml_files import read_yaml

LOGGER = "--trainer.logger"
FRAGMENT_OPTIONS = ("--config", "-c", "--model", "--data", "--trainer", LOGGER)
HARMLESS = {
    "--out",
    *(f"--trainer.{option}" for option in ("accelerator", "devices", "strategy", "num_nodes", "enable_progress_bar")),
}
"""Options that change where a run is scored, not what comes out; a logger changes no more."""
_PACKAGE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Where the project's own fragments and experiments are: beside the package in a checkout, inside it installed."""
    checkout = _PACKAGE.parent / "configs"
    return checkout if checkout.is_dir() else _PACKAGE / "configs"


def find_fragment(name: str) -> Path:
    """A YAML file by its path, or by its name among the project's own configs.

    Raises:
        UserError: there is none.
    """
    for candidate in (Path(name), configs_folder() / name):
        if candidate.is_file():
            return candidate
    known = [path.relative_to(configs_folder()).as_posix() for path in sorted(configs_folder().rglob("*.yaml"))]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"{name}: neither a file here nor one of the project's configs{hint}")


def experiment_arguments(name: str) -> list[str]:
    """``streets/ada_bn+multi_scale`` → the benchmark's base, the model's fragment, the experiment's values.

    An experiment's file is named like its model's fragment, with ``+variant`` behind it where there are several.
    """
    benchmark, _, experiment = name.rpartition("/")
    if not benchmark:
        raise UserError(f"{name!r} is no experiment: name it as benchmark/experiment, for example streets/ada_bn")
    model = experiment.split("+")[0]
    override = find_fragment(f"experiment/{name}.yaml")
    base = find_fragment(f"experiment/{benchmark}/base.yaml")
    return ["--config", str(base), "--model", str(find_fragment(f"model/{model}.yaml")), "--config", str(override)]


def expand(subcommand: str, arguments: Sequence[str]) -> list[str]:
    """Arguments of ``sfda fit`` or ``sfda validate`` as LightningCLI understands them.

    Raises:
        UserError: a file that does not exist, or an order in which one argument would silently undo another.
    """
    given = _experiment_first(arguments)
    if given and not given[0].startswith("-"):
        if "--model" in (option for option, _ in _pairs(given[1:])):
            raise UserError(f"{given[0]} names its model already: leave --model away, or start from --config FILE")
        given = experiment_arguments(given[0]) + given[1:]
    elif given and given[0].split("=")[0] == "--run":
        folder, rest = _take_value(given)
        given = run_arguments(subcommand, Path(folder), rest)
    expanded: list[str] = []
    for option, value in _pairs(given):
        if option in FRAGMENT_OPTIONS and _is_file_name(value):
            value = str(find_fragment(value))
            _check_files(Path(value))
        if option in ("--config", "-c"):
            _check_order(expanded, value)
        if option in ("--model.num_classes", "--model.init_args.num_classes"):
            raise UserError("num_classes follows from --data.init_args.classes: set that instead")
        expanded += [option] if value is None else [option, value]
    return expanded


def run_arguments(subcommand: str, folder: Path, rest: Sequence[str]) -> list[str]:
    """``--run DIR``: the config of a run folder with its selected checkpoint, or, to resume a fit, its last."""
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"--run {folder}: not a run folder, it has no config.yaml")
    arguments = ["--config", str(config), *rest]
    options = dict(_pairs(rest))
    finished = (folder / "result.json").is_file()
    if subcommand == "fit":
        if taken := {"--out", "--ckpt_path"} & set(options):
            raise UserError(
                f"fit --run {folder} goes on in its folder from its last checkpoint: leave {min(taken)} away"
            )
        if finished:
            raise UserError(f"--run {folder}: this run is finished; score it with `sfda validate --run {folder}`")
        last = folder / "last.ckpt"
        return [*arguments, "--out", str(folder), *(["--ckpt_path", str(last)] if last.is_file() else [])]
    if not finished:
        raise UserError(f"--run {folder}: this run is not finished; resume it with `sfda fit --run {folder}`")
    out = Path(options.get("--out") or folder)
    if out.resolve() == folder.resolve():
        changed = [option for option in options if option not in HARMLESS and not option.startswith(LOGGER)]
        if changed:
            raise UserError(f"--run {folder} with {changed[0]} gives other results: say where they go with --out DIR")
        arguments += [] if "--out" in options else ["--out", str(folder)]
    return arguments if "--ckpt_path" in options else [*arguments, "--ckpt_path", str(folder / "selected.ckpt")]


def _experiment_first(arguments: Sequence[str]) -> list[str]:
    """``--use NAME``, wherever it stands, is the experiment NAME in front: what a sweep over experiments can say."""
    named = [value for option, value in _pairs(arguments) if option == "--use"]
    if not named:
        return list(arguments)
    if len(named) > 1 or named[0] is None or not arguments[0].startswith("-"):
        raise UserError("--use names the one experiment of a run: --use streets/ada_bn, and no other beside it")
    rest = [(option, value) for option, value in _pairs(arguments) if option != "--use"]
    return [named[0], *(word for pair in rest for word in pair if word is not None)]


def _take_value(arguments: Sequence[str]) -> tuple[str, list[str]]:
    option, equals, value = arguments[0].partition("=")
    if equals:
        return value, list(arguments[1:])
    if len(arguments) < 2:
        raise UserError(f"{option} needs a value")
    return arguments[1], list(arguments[2:])


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(option, value) in order; a flag, or a word that belongs to no option, has no value."""
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option.startswith("-") and equals:
            yield option, value
        elif option.startswith("-") and rest and not rest[0].startswith("--"):
            yield option, rest.pop(0)
        else:
            yield option + equals + value, None


def _is_file_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value.endswith((".yaml", ".yml", ".json"))


def _check_files(path: Path) -> None:
    """Read a config and the fragments that it names, so that what is wrong with them is said in our words."""
    content = read_yaml(path)
    for value in content.values() if isinstance(content, dict) else ():
        if _is_file_name(value) and (path.parent / value).is_file():
            read_yaml(path.parent / value)


def _check_order(before: Sequence[str], config: str | None) -> None:
    values = [word for word in before if word.startswith("--") and word not in (*FRAGMENT_OPTIONS, "--out")]
    if values:
        raise UserError(f"--config {config} stands behind {values[0]} and would undo it: put every --config first")
