"""Videos, frame by frame, by OpenCV."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from sfda.data.errors import UnreadableFile
from sfda.drawing import Array
from sfda.files import WriteError

VIDEO_TYPES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
"""Endings, in any case, of the files that are taken for videos."""
USUAL_RATE = 25.0
"""Frames per second of a video that does not say."""


def count_frames(path: Path) -> int:
    """How many frames a video says it has; 1 where it does not say."""
    return max(1, _frames_named(path))


def _frames_named(path: Path) -> int:
    with _opened(path) as video:
        return int(video.get(cv2.CAP_PROP_FRAME_COUNT))


def draw_video(path: Path, out: Path, draw: Callable[[int, Array], Array]) -> None:
    """Write to `out` what `draw` makes of every frame of a video: its number and (H, W, 3) RGB → (H, W, 3) RGB.

    At the video's size and rate, without sound, as MPEG-4; whole or not at all.

    Raises:
        UnreadableFile: not one frame can be read.
        WriteError: OpenCV cannot write it.
    """
    temporary = out.with_name(f".{out.stem}.tmp{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer: cv2.VideoWriter | None = None
    written = 0
    try:
        with _opened(path) as video:
            rate = video.get(cv2.CAP_PROP_FPS)
            for written, frame in enumerate(_frames(video), start=1):
                drawn = draw(written - 1, frame)
                if writer is None:
                    writer = _writer(temporary, rate if 0 < rate < 1000 else USUAL_RATE, drawn)
                writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        if writer is None:
            raise UnreadableFile(
                path, "no frame of it can be decoded: damaged, or of a variety that OpenCV does not read"
            )
        writer.release()
        if _frames_named(temporary) != written:  # OpenCV does not tell
            raise WriteError(f"{out} cannot be written: make room there, or choose another folder")
        temporary.replace(out)
    finally:
        if writer is not None:
            writer.release()
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(str(path))
    try:
        yield video
    finally:
        video.release()


def _frames(video: cv2.VideoCapture) -> Iterator[Array]:
    while True:
        there, frame = video.read()
        if not there:
            return
        yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _writer(path: Path, rate: float, frame: Array) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (frame.shape[1], frame.shape[0]))
    if not writer.isOpened():
        raise WriteError(f"{path.parent}: OpenCV cannot write a video there: check the permissions and the room")
    return writer
