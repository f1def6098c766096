"""One command at a time writes into a run folder. Imports no torch."""

import errno
import fcntl
import json
import os
import socket
import time
import warnings
from pathlib import Path
from typing import IO, Any

from sfda.errors import UserError
from sfda.files import writing

NAME = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)
_PATIENCE = 1.0
"""Seconds in which other ranks of this run may look at the lock, which holds it for a moment."""
_mine: list[IO[str]] = []


def hold(folder: Path, *, first: bool) -> None:
    """Lock a run folder until `release`, or the end of this process, by whatever: the kernel frees the lock.

    The lock is that of this process (POSIX, `fcntl.lockf`), not of those that it forks: workers that outlive it for a
    moment keep nobody waiting. A file system without locks is used with a warning.

    Args:
        folder: Made where it is missing.
        first: Whether this is the first of the run's processes; the others look only, so that they refuse together.

    Raises:
        UserError: a command of somebody else's is at work there.
        WriteError: the lock's file cannot be written.
    """
    path = folder / NAME
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    try:
        free = _take(file, _PATIENCE if first else 0)
    except OSError as error:
        file.close()
        if first:
            told = f"{folder}: locks are not supported there ({error.strerror})"
            warnings.warn(f"{told}; give no second command that writes into it", stacklevel=1)
        return
    holder = None if free else _read(file)
    if not free and (first or not _is_of_this_run(holder)):
        file.close()
        raise UserError(_refusal(folder, holder))
    if not first:
        file.close()  # gives back what was taken to look
        return
    _mine.append(file)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "launch": _launch()}
    content = json.dumps(me).encode()
    with writing(path):
        file.truncate(0)
        while content:  # past the file's buffer, which closing would try to write once more
            content = content[os.write(file.fileno(), content) :]


def release() -> None:
    """Give back all that this process holds."""
    while _mine:
        _mine.pop().close()


def _take(file: IO[str], patience: float) -> bool:
    """Whether the lock could be had; an `OSError` where there are none."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _HELD:
                raise
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)


def _read(file: IO[str]) -> dict[str, Any]:
    """What the holder wrote; nothing where it has not yet."""
    file.seek(0)
    try:
        content = json.load(file)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_of_this_run(holder: dict[str, Any] | None) -> bool:
    """Whether the first process of this run holds the lock, or another of its ranks looks at this moment."""
    if not holder:
        return True
    launch = _launch()
    return holder.get("pid") in (os.getpid(), os.getppid()) or (launch is not None and holder.get("launch") == launch)


def _launch() -> str | None:
    """What all processes of a launch by torchrun or srun have in common."""
    if "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" in os.environ:
        return f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ['MASTER_PORT']}" if "MASTER_PORT" in os.environ else None


def _refusal(folder: Path, holder: dict[str, Any] | None) -> str:
    way_out = "wait for its end"
    by = "another command"
    if holder:
        by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        way_out += f", or end it with `kill {holder.get('pid')}` on {holder.get('host')}"
    return f"run folder {folder} is in use by {by}: {way_out}; then give the same command again"
