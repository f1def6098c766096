"""Files: written whole or not at all, and what the system refuses as a sentence. Imports no torch."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfda.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAKE_ROOM = "make room there, or choose a folder on another disk"
ADVICE = {
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or choose a folder on another disk",
    errno.ENOENT: "it, or its folder, was moved or removed",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (`ulimit -n`)"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO), "check the disk, or the network drive, that it is on"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), MAKE_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check the permissions, or choose another folder"),
    **dict.fromkeys(
        (errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
        "choose another folder",
    ),
}
"""What a user can do about what the system refuses."""


class WriteError(UserError):
    """The system refuses to write a file."""


def cannot_write(error: OSError, path: Path | None = None, size: int | None = None) -> WriteError:
    """The sentence about what the system refuses.

    Args:
        error: What the system says.
        path: The file or folder that was written; None: what `error` names, which may have been read.
        size: Bytes of the file, where known.

    Raises:
        OSError: `error` itself, where there is nothing that a user can do.
    """
    advice = ADVICE.get(error.errno or 0)
    if advice is None:
        raise error
    by_name = path is None and error.filename
    subject = f"{error.filename} cannot be used" if by_name else f"{path or 'a file'} cannot be written"
    room = ""
    if advice == MAKE_ROOM and path is not None and size is not None:
        from rich.filesize import decimal

        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        needed, free = (decimal(number, precision=2) for number in (size, shutil.disk_usage(folder).free))
        room = f"; it needs {needed}, and {free} are free"
    return WriteError(f"{subject} ({error.strerror}{room}): {advice}")


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Raise a `WriteError` that names the file where the system refuses to write it inside the block."""
    try:
        yield
    except OSError as error:
        raise cannot_write(error, path, size) from error


def write_whole(path: Path, data: bytes | memoryview, *, shared: bool = False) -> None:
    """Write a file whole or not at all, over what is there; its folder is made where it is missing.

    What a killed process leaves beside it, ``.<name>.tmp``, the next one writes over, unless the file is `shared`:
    other processes may write it at the same time.

    Raises:
        WriteError: as `writing`; what stood at `path` before still stands there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    with writing(path, len(data)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # there may be no such file or folder
                temporary.unlink()
            raise


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, which is values by name.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    advice = "move it away, and give the command that wrote it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no values by name): {advice}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON; see `write_whole`."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def write_figure(path: Path, figure: Figure, dpi: int) -> None:
    """Write a figure of matplotlib as PNG; see `write_whole`."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    write_whole(path, file.getbuffer())
