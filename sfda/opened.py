"""Every file that this process, and the workers that it forks, open: Python's audit hook, and inotify beside it.

Python raises an event for each file that it opens: `open`, Pillow, NumPy and `torch.load` (without `mmap`) go that
way. Libraries that open files in C do not; the usual image readers among them are wrapped to raise one too. What else
is opened in chosen folders, by C code or by a program that was started, Linux tells without a stack (inotify).
"""

import ctypes
import json
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

from sfda.errors import UserError
from sfda.files import writing

Frame = tuple[str, int, str]
"""File, line and function."""
Listener = Callable[[str, bool], None]
"""Takes the whole path of a file that is opened, or of a folder that is listed, and whether it is a folder."""

_OPENS = ("open", "sfda.open")
_LISTS = ("os.listdir", "os.scandir")
_C_READERS = (("cv2", "imread"), ("cv2", "imreadmulti"), ("torchvision.io", "read_file"))
_IN_OPEN, _IN_ISDIR, _IN_Q_OVERFLOW = 0x20, 0x40000000, 0x4000  # of <sys/inotify.h>
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

_listener: Listener | None = None
_installed = False


@dataclass(frozen=True)
class Opened:
    """A file that was opened, or a folder that was listed.

    Attributes:
        path: Its whole path, as it was asked for.
        is_folder: Whether it is a folder.
        stack: Who asked for it, outermost first; empty where it was not opened by Python.
        process: The number of the process.
    """

    path: str
    is_folder: bool
    stack: tuple[Frame, ...] = ()
    process: int | None = None

    def below(self, function: str) -> bool:
        """Whether a function of this name asked for it."""
        return any(frame[2] == function for frame in self.stack)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """A hook stays to the end of the process; without a listener it does nothing."""
    if _listener is None or event not in _OPENS + _LISTS or not isinstance(arguments[0], str | bytes | os.PathLike):
        return  # a number is a file that is open already
    _listener(str(Path(os.fsdecode(arguments[0])).absolute()), event in _LISTS)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """A function is told of all that Python opens and lists; in forked processes too."""
    global _listener, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    with ExitStack() as patched:
        for module, name in _C_READERS:
            if (loaded := sys.modules.get(module)) is not None:
                original = getattr(loaded, name)
                setattr(loaded, name, _audited(original))
                patched.callback(setattr, loaded, name, original)
        before, _listener = _listener, listener
        try:
            yield
        finally:
            _listener = before


def _audited(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def audited(path: Any, *arguments: Any, **options: Any) -> Any:
        sys.audit("sfda.open", path)
        return function(path, *arguments, **options)

    return audited


@contextmanager
def recorded(log: Path, watched: Iterable[str]) -> Iterator[list[Opened]]:
    """Record what is opened; the list is filled when the context ends.

    The same file comes once per process and stack. Workers have to be forked, and have ended when the context ends.

    Args:
        log: A new file, to which all processes append.
        watched: Folders in which also what Python does not see is recorded, by its real path.

    Raises:
        UserError: the folders cannot be watched.
    """
    found: list[Opened] = []
    seen: set[tuple[str, bool, tuple[Frame, ...]]] = set()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)

    def record(path: str, is_folder: bool) -> None:
        stack = _stack()
        if (path, is_folder, stack) not in seen:
            seen.add((path, is_folder, stack))
            with writing(log):
                os.write(descriptor, (json.dumps([path, is_folder, stack, os.getpid()]) + "\n").encode())

    try:
        with _watching(watched) as opened, listening(record):
            yield found
        for line in log.read_text(encoding="utf-8").splitlines():
            path, is_folder, stack, process = json.loads(line)
            found.append(Opened(path, is_folder, tuple((file, number, name) for file, number, name in stack), process))
        known = {str(Path(file.path).resolve()) for file in found}
        found.extend(Opened(path, is_folder=False) for path in opened if path not in known)
    finally:
        os.close(descriptor)


def _stack() -> tuple[Frame, ...]:
    """Who called what opens a file, outermost first, without this module's own functions."""
    frames: list[Frame] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            frames.append((frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(reversed(frames))


@contextmanager
def _watching(folders: Iterable[str]) -> Iterator[list[str]]:
    """Paths of files opened in folders, whoever opens them; the list is filled when the context ends."""
    opened: list[str] = []
    libc = ctypes.CDLL(None, use_errno=True)
    if not (wanted := list(folders)) or not hasattr(libc, "inotify_init1"):  # which Linux alone has
        yield opened
        return
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        names = {libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN): folder for folder in wanted}
        if descriptor < 0 or -1 in names:
            reason = os.strerror(ctypes.get_errno())
            raise UserError(f"{len(wanted)} folders cannot be watched ({reason}): raise fs.inotify.max_user_watches")
        yield opened
        opened.extend(dict.fromkeys(_events(descriptor, names)))
    finally:
        os.close(descriptor)


def _events(descriptor: int, names: dict[int, str]) -> Iterator[str]:
    while True:
        try:
            content = os.read(descriptor, 2**16)
        except BlockingIOError:
            return
        while content:
            watch, mask, _, length = _EVENT.unpack_from(content)
            name, content = content[_EVENT.size : _EVENT.size + length], content[_EVENT.size + length :]
            if mask & _IN_Q_OVERFLOW:
                raise UserError("more files were opened than Linux keeps: raise fs.inotify.max_queued_events")
            if mask & _IN_OPEN and not mask & _IN_ISDIR:
                yield str(Path(names[watch], os.fsdecode(name.rstrip(b"\0"))))
