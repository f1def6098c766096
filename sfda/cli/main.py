"""The console script ``sfda``: dispatch, and errors as sentences.

Nothing heavy is imported before it is known what is asked for: `sfda --help` answers at once.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType

from sfda import __version__
from sfda.errors import Interrupted, UserError
from sfda.files import WriteError, cannot_write

HELP = """\
usage: sfda COMMAND ...

Source-free domain adaptation of semantic segmentation.

  sfda adapt --source FILE --images FOLDER --out DIR
                                       from a model of yours and a folder of images to an adapted model
  sfda weights inspect FILE            what a file of weights holds
  sfda weights import FILE --network NAME --out source.ckpt
                                       a checkpoint of it that every method can start from

  sfda fit EXPERIMENT [OPTIONS]        train or adapt; EXPERIMENT is for example streets/ada_bn
  sfda fit --run DIR                   resume an unfinished run
  sfda validate EXPERIMENT [OPTIONS]   score a model as it is, for example streets/source_only
  sfda validate --run DIR              score the selected checkpoint of a run
  sfda audit EXPERIMENT [OPTIONS]      adapt for a few steps, list every file that is opened, and fail where the
                                       method has not declared that it reads it; or --run DIR
  sfda compare CONFIG --out DIR        run experiments side by side and print their table
  sfda calibrate --run DIR --with NAME
                                       calibrate the probabilities of a finished run, as a run of its own; NAME:
                                       temperature_scaling, pseudo_cal or label_calibration
  sfda sweep FILE --trials N           try hyper-parameters, as a W&B sweep file says, and rank them
  sfda report RUN ... --out FILE       one HTML file about finished runs: tables, intervals, the same images for all
  sfda judge RUN ... --images FOLDER   whether finished runs are better than their source model, without labels or,
                                       with --labels FOLDER, by a few labelled images; --out FILE: one HTML file
  sfda predict --run DIR --images PATH --out DIR
                                       label maps, overlays and confidence of images and videos of your own
  sfda export --run DIR --format onnx  one file that predicts without sfda, preprocessing included; or --format pt2
  sfda data check --config FILE        open every file of a data config and list all faults
  sfda data cache --config FILE        keep decoded copies of images and labels, from which crops are read faster
  sfda data streets --out DIR          write the embedded town `streets` to disk

  sfda fit --help                      every option of fit and validate (they are LightningCLI's:
                                       --config FILE, --model FILE or CLASS, --model.init_args.NAME VALUE,
                                       --data.init_args.NAME VALUE, --trainer.NAME VALUE,
                                       --seed_everything N, --out DIR, --trainer.logger logger/wandb.yaml;
                                       --use EXPERIMENT, where there are options alone, as in a sweep)
  sfda fit --model.help CLASS          every hyper-parameter of a method
  sfda --version

Several `sfda validate` share one process when joined with --then:
  sfda validate --run A --then --run B
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: a mistake that the user can mend)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "adapt": partial(_goes_on, _adapt),
        "weights": _weights,
        "fit": partial(_train, "fit"),
        "validate": partial(_train, "validate"),
        "audit": _audit,
        "compare": partial(_goes_on, _compare),
        "sweep": partial(_goes_on, _sweep),
        "calibrate": _calibrate,
        "judge": _judge,
        "report": _report,
        "predict": _predict,
        "export": _export,
        "data": _data,
    }
    if not given or given[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if given[0] == "--version":
        sys.stdout.write(f"sfda {__version__}\n")
        return 0
    try:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # methods, networks and callbacks of the user's own lie there
        if given[0] not in commands:
            raise UserError(f"unknown command {given[0]!r}: one of {', '.join(commands)} (see `sfda --help`)")
        return commands[given[0]](given[1:])
    except UserError as error:
        return _fail(error)
    except OSError as error:
        return _fail(cannot_write(error))
    except BrokenExecutor:
        text = "a process that this command started has died, probably of too little memory: give the command again"
        return _fail(UserError(text))
    except Interrupted as end:
        if end.how_to_go_on:
            sys.stderr.write(f"sfda: interrupted ({end.signal.name}); {end.how_to_go_on}\n")
        return int(str(end.code))
    except KeyboardInterrupt:
        sys.stderr.write("sfda: interrupted\n")
        return 130


def _goes_on(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """A command that runs others, and goes on where it was when it is given again: SIGTERM ends both."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number, "the same command goes on")

    if threading.current_thread() is not threading.main_thread():
        return command(arguments)
    before = signal.signal(signal.SIGTERM, end)
    try:
        return command(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(error: UserError) -> int:
    """Say what a user can mend; gives the exit status."""
    text = str(error)
    if "Original Traceback" in text:  # from a loader's worker, with the worker's traceback around it
        text = text.rpartition("Error: ")[2].strip()
    if isinstance(error, WriteError):
        text += ". What is written stays; the same command goes on from there"
    sys.stderr.write(f"sfda: {text}\n")
    return 2


def _train(subcommand: str, arguments: list[str]) -> int:
    from sfda.runs.arguments import expand

    jobs: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--then":
            jobs.append([])
        else:
            jobs[-1].append(argument)
    if len(jobs) > 1 and subcommand == "fit":
        raise UserError("--then joins `sfda validate` calls only; every fit is a process of its own")
    expanded = [expand(subcommand, job) for job in jobs]

    with _loading():
        from sfda.cli.lightning_cli import run

    for job in expanded:
        run(job)
    return 0


def _audit(arguments: list[str]) -> int:
    from sfda.cli.audit_options import parser

    options, words = parser().parse_known_args(arguments)
    if options.run is None and not words:
        parser().error("name an experiment, for example streets/ada_bn, or a run with --run DIR")
    with _loading():
        from sfda.cli.audit import audit

    return audit(options.run, words)


def _judge(arguments: list[str]) -> int:
    from sfda.cli.judge_options import parser

    said = parser().parse_args(arguments)
    said.command = shlex.join(["sfda", "judge", *arguments])
    with _loading():
        from sfda.cli.judge import judge

    return judge(said)


def _report(arguments: list[str]) -> int:
    from sfda.cli.report_options import parser

    options = parser().parse_args(arguments)
    if options.out.exists():
        raise UserError(f"{options.out} exists already: move it away, or give another --out")

    from rich.console import Console

    from sfda.progress import progress
    from sfda.report.page import default_title, write_report

    title = options.title or default_title(options.runs)
    write_report(options.runs, options.out, title=title, show_progress=partial(progress, Console()))
    sys.stdout.write(f"{options.out}: open it in a browser\n")
    return 0


def _loading() -> AbstractContextManager[object]:
    """PyTorch and what stands on it take ten seconds to import: the first process says so on a terminal."""
    if not sys.stdout.isatty() or "LOCAL_RANK" in os.environ:
        return nullcontext()
    from rich.console import Console

    return Console().status("loading PyTorch")


def _compare(arguments: list[str]) -> int:
    from sfda.cli.compare_options import parser
    from sfda.runs.comparison import compare

    options = parser().parse_args(arguments)
    return compare(options.config, options.out, main, _write_page, options.logger)


def _write_page(folder: Path, title: str) -> Path:
    from sfda.report.page import NAME, write_report

    return write_report([folder], folder / NAME, title=title)


def _calibrate(arguments: list[str]) -> int:
    from sfda.cli.calibrate_options import parser

    options, more = parser().parse_known_args(arguments)

    from sfda.cli.calibrate import calibration_arguments

    return _train("fit", calibration_arguments(options.run, options.calibrator, options.out, more))


def _sweep(arguments: list[str]) -> int:
    from sfda.cli.sweep_options import parser

    options = parser().parse_args(arguments)

    from sfda.runs.sweep import sweep

    return sweep(options.file, options.trials, options.out, options.seed, options.logger)


def _adapt(arguments: list[str]) -> int:
    from sfda.cli.adapt_options import parser

    options = parser().parse_args(arguments)
    with _loading():
        from sfda.cli.adapt import adapt

    return adapt(options)


def _weights(arguments: list[str]) -> int:
    from sfda.cli.weights_options import parser

    options = parser().parse_args(arguments)
    with _loading():
        from sfda.cli.weights import import_file, inspect

    (inspect if options.command == "inspect" else import_file)(options)
    return 0


def _predict(arguments: list[str]) -> int:
    from sfda.cli.predict_options import parser

    options = parser().parse_args(arguments)

    with _loading():
        from sfda.cli.predict import predict

    return predict(options.run, options.images, options.out, options.checkpoint, label_ids=options.label_ids)


def _export(arguments: list[str]) -> int:
    from sfda.cli.export_options import parser

    options = parser().parse_args(arguments)

    with _loading():
        from sfda.cli.export import export

    return export(options.run, options.format, options.out, options.images)


def _data(arguments: list[str]) -> int:
    from sfda.cli.data_options import parser

    options = parser().parse_args(arguments)
    if options.command == "check":
        from sfda.cli.data_check import check as check_data

        return check_data(options.config)
    if options.command == "cache":
        from sfda.cli.data_cache import cache

        return cache(options.config)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

    from rich.console import Console

    from sfda.progress import progress
    from sfda.town import write_streets

    write_streets(options.out, height=options.height, width=options.width, show_progress=partial(progress, Console()))
    return 0
