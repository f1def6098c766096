"""One scene of the town: its image and its labels."""

from zlib import crc32

import numpy as np
import numpy.typing as npt

from sfda.data.label_spaces import CITYSCAPES19
from sfda.errors import UserError
from sfda.town.draw import Dice, rasterise
from sfda.town.scene import compose
from sfda.town.shade import WEATHERS, shade
from sfda.town.styles import PRESETS, Style

SKY = CITYSCAPES19.names.index("sky")


def style_of(preset: str, domain: str) -> Style:
    """The style of a domain.

    Raises:
        UserError: unknown preset or domain.
    """
    if preset not in PRESETS:
        raise UserError(f"streets preset {preset!r} is unknown: choose one of {', '.join(PRESETS)}")
    if domain not in PRESETS[preset]:
        raise UserError(f"streets domain {domain!r} is unknown: choose one of {', '.join(PRESETS[preset])}")
    return PRESETS[preset][domain]


def render(
    domain: str,
    split: str,
    index: int,
    height: int = 128,
    width: int = 256,
    preset: str = "streets-v1",
    weather: str = "day",
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A scene as a pure function of its arguments.

    The scene is laid out in shares of the image, so that an index shows the same street at every size. Label maps are
    the same on every platform; images differ by at most one grey level.

    Args:
        domain: ``gta5``, ``synthia`` (sources) or ``cityscapes`` (target).
        split: Any name; scenes of different splits are different.
        index: Number of the scene in its split, from 0.
        height: Rows, 32 or more.
        width: Columns, 64 or more; scenes are drawn for twice the height.
        preset: Name of the town.
        weather: ``day``, ``dusk`` or ``fog``; changes the image only, never the labels.

    Returns:
        Image (H, W, 3) uint8 RGB and labels (H, W) uint8: train ids of ``cityscapes19``, 255 where ignored.

    Raises:
        UserError: unknown preset, domain or weather.
    """
    style = style_of(preset, domain)
    if weather not in WEATHERS:
        raise UserError(f"streets weather {weather!r} is unknown: choose one of {', '.join(WEATHERS)}")
    seeds = (crc32(preset.encode()), crc32(domain.encode()), crc32(split.encode()), index)
    sketch = compose(style, Dice(*seeds, 0))
    numbers, shaded = rasterise(sketch, height, width)
    labels = np.array([SKY, *sketch.labels], np.uint8)[numbers]
    return shade(sketch, style, Dice(*seeds, 1), numbers, shaded, weather), labels
