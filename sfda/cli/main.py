"""The console script ``sfda``: dispatch, and errors as sentences.

Nothing heavy is imported before it is known what is asked for: `sfda --help` answers at once.
"""

import argparse
import os
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
                                       with --labels FOLDER, by a few labelled images
  sfda predict --run DIR --images PATH --out DIR
                                       label maps, overlays and confidence of images and videos of your own
  sfda export --run DIR --format onnx  one file that predicts without sfda, preprocessing included; or --format pt2
  sfda data check --config FILE        open every file of a data config and list all faults
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
    parser = argparse.ArgumentParser(
        prog="sfda audit",
        usage="sfda audit EXPERIMENT [OPTIONS]  or  sfda audit --run DIR [OPTIONS]",
        description="Adapt for a few steps and score, as trainer/smoke.yaml says, in a temporary folder, and count the "
        "files that the process and its loaders' workers open. Adapting may open what the method's `needs` declare, "
        "scoring the validation sets; anything else of the data sets is shown with its stack. Further options are "
        "those of `sfda fit`. Exit status: 0, or 1 where a file was opened that may not be.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of a run, whose config.yaml is audited")
    options, words = parser.parse_known_args(arguments)
    if options.run is None and not words:
        parser.error("name an experiment, for example streets/ada_bn, or a run with --run DIR")
    with _loading():
        from sfda.cli.audit import audit

    return audit(options.run, words)


def _judge(arguments: list[str]) -> int:
    from sfda.cli.judge_options import parser

    said = parser().parse_args(arguments)
    with _loading():
        from sfda.cli.judge import judge

    return judge(said)


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sfda report",
        description="Write one HTML file about finished runs, made anywhere: scores with intervals over images, "
        "differences per class, the same images as every run labels them, calibration and cost. It needs no network "
        "and nothing beside it. Runs that `sfda validate` has scored are read alone; no model is run.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders that hold some")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the file (default: report.html)")
    parser.add_argument("--title", help="what stands on top (default: the names of the folders)")
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise UserError(f"{options.out} exists already: move it away, or give another --out")

    from sfda.report.page import default_title, write_report

    write_report(options.runs, options.out, title=options.title or default_title(options.runs))
    sys.stdout.write(f"{options.out}: open it in a browser\n")
    return 0


def _loading() -> AbstractContextManager[object]:
    """PyTorch and what stands on it take ten seconds to import: the first process says so on a terminal."""
    if not sys.stdout.isatty() or "LOCAL_RANK" in os.environ:
        return nullcontext()
    from rich.console import Console

    return Console().status("loading PyTorch")


def _compare(arguments: list[str]) -> int:
    from sfda.runs.comparison import compare

    parser = argparse.ArgumentParser(prog="sfda compare", description="Run experiments side by side.")
    parser.add_argument("config", help="a file under configs/compare, for example compare/demo.yaml, or your own")
    parser.add_argument("--out", required=True, type=Path, help="folder of all runs, results.json and results.csv")
    _add_logger(parser)
    options = parser.parse_args(arguments)
    return compare(options.config, options.out, main, _write_page, options.logger)


def _write_page(folder: Path, title: str) -> Path:
    from sfda.report.page import NAME, write_report

    return write_report([folder], folder / NAME, title=title)


def _add_logger(parser: argparse.ArgumentParser) -> None:
    text = "a further logger of every run that is begun, logger/wandb.yaml for example; no part of a run's settings"
    parser.add_argument("--trainer.logger", dest="logger", metavar="FILE", help=text)


def _calibrate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sfda calibrate",
        description="Calibrate the selected checkpoint of a run without training it: a fit of its own, with the run's "
        "data and trainer. `sfda validate --run` scores the outcome. Further options are those of `sfda fit`.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run of any method")
    names = "temperature_scaling (reads labelled source images), pseudo_cal or label_calibration (unlabelled target "
    names += "images; the last changes which class is predicted)"
    parser.add_argument("--with", required=True, dest="calibrator", metavar="NAME", help=names)
    default = "default: the run's folder with +NAME after the experiment: runs/B/EXPERIMENT+NAME/seedN"
    parser.add_argument("--out", type=Path, help=default)
    options, more = parser.parse_known_args(arguments)

    from sfda.cli.calibrate import calibration_arguments

    return _train("fit", calibration_arguments(options.run, options.calibrator, options.out, more))


def _sweep(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sfda sweep",
        description="Run trials of a W&B sweep file here, without an account, and print them, the best first. The same "
        "command goes on where it was interrupted; a larger N adds trials.",
    )
    parser.add_argument("file", help="a file under configs/sweep, for example sweep/ada_bn.yaml, or your own")
    parser.add_argument("--trials", type=_positive, help="how many (default: all of a grid)")
    parser.add_argument("--out", type=Path, help="folder of all trials and results.json (default: runs/sweep/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="what random trials are drawn with; no run's own seed")
    _add_logger(parser)
    options = parser.parse_args(arguments)

    from sfda.runs.sweep import sweep

    return sweep(options.file, options.trials, options.out, options.seed, options.logger)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of trials")
    return int(text)


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
    parser = argparse.ArgumentParser(
        prog="sfda predict",
        description="Label images and videos of your own. For each image, OUT holds NAME_trainIds.png (train ids, at "
        "the image's size), NAME_overlay.png and NAME_confidence.png (white = 1); for each video, NAME_overlay.mp4 "
        "(its size and rate, no sound) and NAME/000123_trainIds.png of every frame, from 0. Where the run brings "
        "images to no size, one of more than 4 megapixels is predicted in windows of 1024 x 1024 that overlap by 256 "
        "or more, their probabilities blended. The same command goes on where it was interrupted.",
    )
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument(
        "--images",
        required=True,
        type=Path,
        help="an image, a video (.mp4 .avi .mov .mkv .webm), or a folder of them at any depth",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the predictions, of this checkpoint alone")
    parser.add_argument("--checkpoint", type=Path, help="default: selected.ckpt of the run")
    label_ids = "write only NAME_labelIds.png with the label ids of Cityscapes, as its official evaluation reads them"
    parser.add_argument("--label-ids", action="store_true", help=label_ids)
    options = parser.parse_args(arguments)

    with _loading():
        from sfda.cli.predict import predict

    return predict(options.run, options.images, options.out, options.checkpoint, label_ids=options.label_ids)


def _export(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sfda export",
        description="Write the selected checkpoint of a run as one file that predicts without sfda. In: RGB images in "
        "[0, 1], float32 (B, 3, H, W), any number of any size. Out: probabilities (B, C, H, W) of the run's scored "
        "classes; resizing, normalisation, padding, views and calibration are inside. Names and colours of the classes "
        "and the run are in the file's metadata. The file is compared with PyTorch before it is kept.",
    )
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    kinds = "onnx (ONNX Runtime and others), or pt2 (torch.export.load, no other code)"
    parser.add_argument("--format", required=True, choices=("onnx", "pt2"), help=kinds)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: model.onnx or model.pt2 in the run folder")
    compared = "an image or a folder to compare with (default: images of the run's target, or random ones)"
    parser.add_argument("--images", type=Path, help=compared)
    options = parser.parse_args(arguments)

    with _loading():
        from sfda.cli.export import export

    return export(options.run, options.format, options.out, options.images)


def _data(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="sfda data", description="Data sets on disk.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="open every file of a data config and list all faults")
    check.add_argument("--config", required=True, help="data/streets.yaml, an experiment's base.yaml, a run's config")
    streets = commands.add_parser("streets", help="write the embedded town in the layouts of the real data sets")
    streets.add_argument("--out", required=True, type=Path, help="folder for gta5/, synthia/ and cityscapes/")
    streets.add_argument("--height", type=int, default=128)
    streets.add_argument("--width", type=int, default=256)
    options = parser.parse_args(arguments)
    if options.command == "check":
        from sfda.cli.data_check import check as check_data

        return check_data(options.config)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

    from rich.console import Console

    from sfda.progress import progress
    from sfda.town import write_streets

    write_streets(options.out, height=options.height, width=options.width, show_progress=partial(progress, Console()))
    return 0
