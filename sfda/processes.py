"""``sfda`` commands in processes of their own that share one import of torch."""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

PRELOADED = ["sfda.cli.lightning_cli", "segmentation_models_pytorch"]
"""What the server imports once, without starting a thread or touching a GPU; each command is a fork of it."""


@dataclass
class Command:
    """A running ``sfda`` command."""

    output: TextIO
    """Its standard output and error as they come, line by line."""
    status: int | None = None
    """Its exit status, negative for a signal; None while it runs."""


def preload() -> None:
    """Begin to import what the commands need, in the background."""
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


@contextmanager
def started(words: Sequence[str], **environment: str) -> Iterator[Command]:
    """Start ``sfda WORDS`` in the current folder, with further variables; leaving the context waits for its end."""
    preload()
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(list(words), {**os.environ, **environment}, writer))
    process.start()
    writer.close()
    with os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace") as output:
        reader.close()
        command = Command(output)
        try:
            yield command
        except BaseException:
            process.terminate()
            raise
        finally:
            process.join()
            command.status = process.exitcode


def asked(module: str, function: str, *arguments: Any) -> Any:
    """What a function returns, or raises, that needs torch, which this process has not imported."""
    preload()
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(_answer, module, function, arguments, str(Path.cwd())).result()


def _answer(module: str, function: str, arguments: Sequence[Any], folder: str) -> Any:
    os.chdir(folder)  # the server's folder may be another one
    sys.path.insert(0, folder)
    return getattr(importlib.import_module(module), function)(*arguments)


def _command(words: list[str], environment: Mapping[str, str], output: Connection) -> None:
    main = importlib.import_module("sfda.cli.main").main
    multiprocessing.set_start_method(None, force=True)  # loaders start their workers as they do everywhere
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        os.dup2(output.fileno(), descriptor)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    output.close()
    sys.exit(main(words))
