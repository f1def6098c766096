"""From polygon numbers to an image: texture, shadow, haze, weather and the sensor."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from sfda.town.draw import GROUND_MATERIALS, Dice, Material, Sketch, as_array
from sfda.town.styles import Style

Floats = npt.NDArray[np.float32]

WEATHERS = ("day", "dusk", "fog")
CELLS = ((192, 384), (56, 112), (18, 36))  # of fine, medium and coarse noise
# Strength of fine, medium and coarse texture.
TEXTURES = {
    Material.SKY: (0.0, 0.0, 0.0),
    Material.GROUND: (0.10, 0.06, 0.08),
    Material.PAVING: (0.10, 0.08, 0.06),
    Material.GRASS: (0.22, 0.16, 0.12),
    Material.FACADE: (0.07, 0.07, 0.08),
    Material.GLASS: (0.05, 0.14, 0.22),
    Material.FOLIAGE: (0.38, 0.22, 0.10),
    Material.PAINT: (0.03, 0.04, 0.06),
    Material.CLOTH: (0.08, 0.08, 0.0),
    Material.LAMP: (0.0, 0.0, 0.0),
}


@lru_cache(maxsize=8)
def _tiles(height: int, width: int) -> tuple[Floats, Floats]:
    """Noise half as large again as the image: textures (., ., 3) fine to coarse, and the sensor's (., ., 3)."""
    random = np.random.Generator(np.random.PCG64(2019)).random
    size = (width + width // 2, height + height // 2)
    textures = [cv2.resize(_bell(random, (*cells, 1)), size, interpolation=cv2.INTER_LINEAR) for cells in CELLS]
    return np.stack(textures, axis=-1), _bell(random, (size[1], size[0], 3))


def _bell(random: Callable[[tuple[int, ...]], npt.NDArray[np.float64]], shape: tuple[int, ...]) -> Floats:
    # A sum of uniform numbers instead of a normal one: the same on every platform. Mean 0, standard deviation 1.
    bell: Floats = ((random((4, *shape)).sum(axis=0) - 2.0) * np.sqrt(3.0)).astype(np.float32)
    return bell


def _cut(tile: Floats, dice: Dice, height: int, width: int) -> Floats:
    top, left = int(dice(0.0, 0.5) * height), int(dice(0.0, 0.5) * width)
    return tile[top : top + height, left : left + width]


def shade(
    sketch: Sketch,
    style: Style,
    dice: Dice,
    numbers: npt.NDArray[np.int32],
    shaded: npt.NDArray[np.uint8],
    weather: str,
) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) uint8 RGB of rasterised polygons."""
    height, width = numbers.shape
    textures, sensor = (_cut(tile, dice, height, width) for tile in _tiles(height, width))
    sun = dice(0.6, 1.0)
    exposure = dice(*style.exposure)
    gains = [exposure * channel / 100 * dice(0.96, 1.04) for channel in style.tint]  # white balance is never the same
    materials = np.array([Material.SKY, *sketch.materials])
    image = np.array([style.sky[0], *sketch.colours], np.float32)[numbers]
    strength = np.array([TEXTURES[Material(kind)] for kind in range(len(Material))], np.float32) * style.texture
    strength *= np.array([2.0 - 2.0 * style.grain, 1.0, 2.0 * style.grain], np.float32)
    image *= 1.0 + (strength[materials][numbers] * textures).sum(axis=-1, keepdims=True)
    ground = np.isin(materials, GROUND_MATERIALS)[numbers]
    if weather != "fog":
        blurred = cv2.blur(shaded.astype(np.float32), (3, 3))
        image *= 1.0 - (blurred * ground * (style.shadow * sun))[..., None]
    sky = _sky(sketch, style, textures, weather)
    image = np.where((numbers == 0)[..., None], sky, image)
    image = _hazed(sketch, style, image, numbers, ground, weather)
    if weather == "dusk":
        lamps = np.isin(materials, (Material.LAMP,))[numbers][..., None]
        image = np.where(lamps, image * 1.05, image * np.array([0.6, 0.5, 0.56], np.float32))
    return _sensed(image, style, gains, sensor)


def _sky(sketch: Sketch, style: Style, textures: Floats, weather: str) -> Floats:
    height = textures.shape[0]
    rows = (np.arange(height, dtype=np.float32) / height / sketch.camera.horizon).clip(0, 1)[:, None, None]
    top, bottom, cloud = (np.array(colour, np.float32) for colour in (*style.sky, style.cloud))
    if weather == "dusk":
        bottom = bottom * np.array([1.2, 0.8, 0.6], np.float32)
    cover = (textures[..., 2:] + 0.35 * textures[..., 1:2] - 1.3 + 2.0 * style.clouds).clip(0, 1) * 0.85
    clear = top + (bottom - top) * rows
    sky: Floats = (clear + (cloud - clear) * cover).astype(np.float32)
    return sky


def _hazed(
    sketch: Sketch, style: Style, image: Floats, numbers: npt.NDArray[np.int32], ground: npt.NDArray[np.bool_],
    weather: str,
) -> Floats:  # fmt: skip
    density = 0.035 if weather == "fog" else style.haze
    haze = np.array((206, 210, 212) if weather == "fog" else style.haze_colour, np.float32)
    camera, height = sketch.camera, numbers.shape[0]
    below = np.maximum((np.arange(height) + 0.5) / height - camera.horizon, 1e-3)
    starts = np.cumsum([0, *sketch.lengths[:-1]])
    depths = np.add.reduceat(as_array(sketch.corners)[:, 2], starts) / np.array(sketch.lengths)
    depths = np.concatenate([[90.0 if weather == "fog" else 0.0], np.maximum(depths, 0.0)])
    of_polygon = np.exp(-density * depths).astype(np.float32)
    of_row = np.exp(-density * camera.focal * camera.height / below).astype(np.float32)
    clear = np.where(ground, of_row[:, None], of_polygon[numbers])[..., None]
    return haze + (image - haze) * clear


def _sensed(image: Floats, style: Style, gains: Sequence[float], sensor: Floats) -> npt.NDArray[np.uint8]:
    grey = image.mean(axis=-1, keepdims=True)
    image = grey + (image - grey) * style.saturation
    image *= np.array(gains, np.float32)
    image = 118.0 + (image - 118.0) * style.contrast
    deviation = style.blur * image.shape[0] / 1000
    image = cv2.GaussianBlur(np.ascontiguousarray(image, np.float32), (0, 0), deviation)
    image = image + style.noise * sensor
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
