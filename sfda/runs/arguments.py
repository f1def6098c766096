"""From what a user types to what LightningCLI reads: experiment names, fragments, run folders.

Nothing here imports torch, so that mistakes are answered at once.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sfda.data.paths import expand_path
from sfda.errors import UserError
from sfda.runs.experiment import (
    PARTS,
    Config,
    find_fragment,
    is_config,
    leaves,
    merge,
    read_class,
    read_config,
    resolve,
)
from sfda.runs.own_library import refuse_functions_of_python
from sfda.runs.run import Run
from sfda.yaml_files import read_mapping

LOGGER = "--trainer.logger"
SOURCE_CHECKPOINT = "--model.init_args.source_checkpoint"
HARMLESS = {
    "--out",
    *(f"--trainer.{option}" for option in ("accelerator", "devices", "strategy", "num_nodes", "enable_progress_bar")),
}
"""Options that change where a run is scored, not what comes out; a logger changes no more."""
_OF_ONE_CALL = ("--out", LOGGER)
Options = Mapping[str, str | None]


@dataclass(frozen=True)
class Job:
    """One ``sfda fit`` or ``sfda validate``.

    Attributes:
        subcommand: ``fit`` or ``validate``.
        given: What the user typed after it.
        config: What all files say together.
        options: The options typed beside files, which come after them.
        run: The run that goes on, or is scored in its own folder; None for a run of its own.
    """

    subcommand: str
    given: tuple[str, ...]
    config: Config
    options: tuple[str, ...]
    run: Run | None = None

    @property
    def words(self) -> list[str]:
        """What LightningCLI parses."""
        files = ["--config", yaml.safe_dump(self.config, sort_keys=False)] if self.config else []
        return [self.subcommand, *files, *self.options]

    def settings(self, out: Path) -> dict[str, Any]:
        """Everything that decides what comes out, equal wherever the folder `out` of all runs lies."""
        config = self.config
        for option, value in _pairs(self.options):
            if option.split(".init_args")[0] not in _OF_ONE_CALL:
                config = merge(config, _nested(option.lstrip("-").split("."), yaml.safe_load(value or "null")))
        config = _without_logger(_below(config, out))
        files = sorted({value for name, value in leaves(config.get("data")) if is_config(value)})
        known = [path for path in map(expand_path, files) if path.is_file()]
        return {"config": config, "class_files": {str(path): read_mapping(path) for path in known}}


def _nested(names: Sequence[str], value: Any) -> Any:
    return {names[0]: _nested(names[1:], value)} if names else value


def _without_logger(config: Config) -> Config:
    trainer = {key: value for key, value in (config.get("trainer") or {}).items() if key != "logger"}
    return {**config, "trainer": trainer}


def _below(content: Any, out: Path) -> Any:
    """Nested values; checkpoints in the folder `out` as they lie below it."""
    if isinstance(content, Mapping):
        return {key: _below(value, out) for key, value in content.items()}
    if isinstance(content, str) and content.endswith(".ckpt") and Path(content).is_relative_to(out):
        return f"/{Path(content).relative_to(out).as_posix()}"
    return content


def expand(subcommand: str, arguments: Sequence[str]) -> Job:
    """What ``sfda fit`` or ``sfda validate`` is to do.

    All files are read first, in their order, and merged (see `sfda.runs.experiment.merge`): ``--model FILE`` and
    ``--data FILE`` replace another fragment, ``--config FILE`` and ``--trainer FILE`` change what they name.

    Raises:
        UserError: a file does not exist or is not as it should be, or arguments contradict each other.
    """
    given = _experiment_first(arguments)
    config: Config = {}
    options: list[str] = []
    run = None
    if given and not given[0].startswith("-"):
        config, options = _of_experiment(given.pop(0), dict(_pairs(given)))
    elif given and given[0].split("=")[0] == "--run":
        folder, given = _take_value(given)
        run = Run(Path(folder))
        config, options = run.config(), _options_of_run(subcommand, run, dict(_pairs(given)))
        run = None if _is_elsewhere(run, dict(_pairs(given))) else run
    for option, value in _pairs(given):
        if option in ("--model.num_classes", "--model.init_args.num_classes"):
            raise UserError("num_classes follows from --data.init_args.classes: set that instead")
        if is_config(value) and option in ("--config", "-c", *(f"--{part}" for part in PARTS)):
            config = _with_file(config, option.lstrip("-"), find_fragment(str(value)))
            continue
        if is_config(value) and option == LOGGER:
            value = str(find_fragment(str(value)))
            read_class(Path(value))  # so that what is wrong with it is said in our words
        options += [option] if value is None else [option, value]
    refuse_functions_of_python(config)
    return Job(subcommand, tuple(arguments), config, tuple(options), run)


def _of_experiment(name: str, given: Options) -> tuple[Config, list[str]]:
    """The config of an experiment, and where its run goes unless the user says so."""
    if "--model" in given:
        raise UserError(f"{name} names its model already: leave --model away, or start from --config FILE")
    experiment = resolve(name)
    seed = given.get("--seed_everything") or experiment.config.get("seed_everything")
    out = Path("runs", experiment.benchmark, experiment.name, run_name(seed))
    return experiment.config, [] if "--out" in given else ["--out", str(out)]


def _with_file(config: Config, kind: str, path: Path) -> Config:
    """A config with one more file."""
    if kind == "trainer":
        return merge(config, {kind: read_mapping(path)})  # type: ignore[no-any-return]
    if kind in PARTS:
        present = config.get(kind) or {}
        fragment = read_class(path)
        return {**config, kind: fragment if "class_path" in present else merge(fragment, present)}
    content = read_config(path)
    if of_experiment := sorted({"source", "variants"} & set(content)):
        raise UserError(
            f"{path} is the file of an experiment, it has `{of_experiment[0]}`: give its name instead, "
            f"{path.parent.name}/{path.stem}; with --print_config it shows the whole config"
        )
    content.pop("experiments", None)  # of a benchmark's base
    return merge(config, content)  # type: ignore[no-any-return]


def _options_of_run(subcommand: str, run: Run, given: Options) -> list[str]:
    """``--run DIR``: a fit goes on from its last checkpoint, a validation scores the selected one."""
    folder = run.folder
    if subcommand == "fit":
        if taken := {"--out", "--ckpt_path"} & set(given):
            raise UserError(
                f"fit --run {folder} goes on in its folder from its last checkpoint: leave {min(taken)} away"
            )
        if run.is_finished:
            raise UserError(f"--run {folder}: this run is finished; score it with `sfda validate --run {folder}`")
        return ["--out", str(folder), *(["--ckpt_path", str(run.last)] if run.is_resumable else [])]
    if not run.is_finished:
        raise UserError(f"--run {folder}: this run is not finished; resume it with `sfda fit --run {folder}`")
    changed = [option for option in given if option not in HARMLESS and not option.startswith(LOGGER)]
    if changed and not _is_elsewhere(run, given):
        raise UserError(f"--run {folder} with {changed[0]} gives other results: say where they go with --out DIR")
    defaults = {"--out": str(folder), "--ckpt_path": str(run.selected)}
    return [word for option, value in defaults.items() if option not in given for word in (option, value)]


def _is_elsewhere(run: Run, given: Options) -> bool:
    """Whether the results go into another folder than that of the run."""
    return Path(given.get("--out") or run.folder).resolve() != run.folder.resolve()


def run_name(seed: object) -> str:
    """Default name of a run folder among those of its experiment; an agent of a W&B sweep starts many with one seed."""
    sweep = os.environ.get("WANDB_SWEEP_ID")
    return f"sweep-{sweep}/{os.environ['WANDB_RUN_ID']}" if sweep else f"seed{seed}"


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
