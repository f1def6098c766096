"""The sketch of a scene (polygons in metres), its camera, and its rasterisation into polygon numbers.

A scene is painted as *numbers of polygons*, back to front, into one integer map. Labels and image are both looked up
from that map: they cannot disagree, and weather, which only changes how colours are looked up, cannot touch labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

Colour = tuple[float, float, float]
"""RGB, 0-255."""
Point = tuple[float, float, float]
"""x to the right, y up, z ahead, in metres from the point of the road below the camera."""
T = TypeVar("T")

NEAREST = 0.8  # metres: where polygons that reach behind the camera are cut off

# A circle as twelve literal corners: no cosine of some platform's mathematics library decides about a pixel.
CIRCLE = (
    (1.0, 0.0), (0.866, 0.5), (0.5, 0.866), (0.0, 1.0), (-0.5, 0.866), (-0.866, 0.5),
    (-1.0, 0.0), (-0.866, -0.5), (-0.5, -0.866), (0.0, -1.0), (0.5, -0.866), (0.866, -0.5),
)  # fmt: skip


class Material(IntEnum):
    """What a polygon is made of; decides its texture and how light falls on it."""

    SKY = 0
    GROUND = 1
    PAVING = 2
    GRASS = 3
    FACADE = 4
    GLASS = 5
    FOLIAGE = 6
    PAINT = 7
    CLOTH = 8
    LAMP = 9


GROUND_MATERIALS = (Material.GROUND, Material.PAVING, Material.GRASS)


def _uniform(seeds: Sequence[int]) -> Iterator[float]:
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds))).random
    while True:
        yield from random(1024).tolist()  # one at a time they cost ten times as much


class Dice:
    """Draws from uniform numbers alone, whose stream NumPy keeps the same on every platform."""

    def __init__(self, *seeds: int) -> None:
        self._random = _uniform(seeds).__next__

    def __call__(self, low: float, high: float) -> float:
        """A number between two others."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self._random() * len(options))]

    def weighted(self, weights: dict[T, float]) -> T:
        """One of the keys, as likely as its weight says."""
        left = self._random() * sum(weights.values())
        for option, weight in weights.items():
            left -= weight
            if left < 0:
                return option
        return option

    def count(self, mean: float) -> int:
        """A whole number between 0 and twice `mean`, of that mean."""
        return int(self._random() * 2 * mean + 0.5)

    def near(self, low: float, high: float) -> float:
        """A distance, the likelier the nearer."""
        share = self._random()
        return low + (high - low) * share * share


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the ground plane."""

    height: float  # above the road, metres
    focal: float  # length in image heights
    horizon: float  # its row as a share of the image height
    vanishing: float  # column where the road vanishes as a share of the image width
    bend: float  # curvature of the road: metres to the side per square metre ahead

    def project(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """World points (N, 3) in metres → image points (N, 2), column and row as shares of width and height."""
        x, y, z = points[:, 0], points[:, 1], np.maximum(points[:, 2], NEAREST)
        scale = self.focal / z
        # Images are twice as wide as high; other shapes show the same scene, stretched.
        columns = self.vanishing + (x + self.bend * z * z) * scale * 0.5
        rows = self.horizon + (self.height - y) * scale
        return np.stack([columns, rows], axis=1)


@dataclass
class Sketch:
    """Polygons from back to front; number 0 is the sky, which fills the image before anything is painted."""

    camera: Camera
    corners: list[Point] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    materials: list[int] = field(default_factory=list)
    flat: list[bool] = field(default_factory=list)
    shadow_corners: list[Point] = field(default_factory=list)
    shadow_lengths: list[int] = field(default_factory=list)

    def polygon(self, corners: Sequence[Point], label: int, colour: Colour, material: int = Material.PAINT) -> None:
        """Adds a polygon in metres in front of everything so far."""
        self._add(corners, label, colour, material, flat=False)

    def flat_polygon(self, corners: Sequence[tuple[float, float]], label: int, colour: Colour) -> None:
        """Adds a polygon in shares of width and height, in front of everything so far."""
        self._add([(x, y, 0.0) for x, y in corners], label, colour, Material.PAINT, flat=True)

    def _add(self, corners: Sequence[Point], label: int, colour: Colour, material: int, flat: bool) -> None:
        self.corners.extend(corners)
        self.lengths.append(len(corners))
        self.labels.append(label)
        self.colours.append(colour)
        self.materials.append(material)
        self.flat.append(flat)

    def upright(
        self, x0: float, x1: float, y0: float, y1: float, z: float, label: int, colour: Colour,
        material: int = Material.PAINT,
    ) -> None:  # fmt: skip
        """Adds a rectangle that faces the camera."""
        self.polygon(((x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z)), label, colour, material)

    def alongside(
        self, x: float, y0: float, y1: float, z0: float, z1: float, label: int, colour: Colour,
        material: int = Material.PAINT,
    ) -> None:  # fmt: skip
        """Adds an upright rectangle that runs along the road."""
        self.polygon(((x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)), label, colour, material)

    def lying(
        self, x0: float, x1: float, z0: float, z1: float, label: int, colour: Colour, material: int = Material.GROUND
    ) -> None:
        """Adds a rectangle on the ground."""
        self.polygon(((x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)), label, colour, material)

    def disc(
        self, x: float, y: float, z: float, rx: float, ry: float, label: int, colour: Colour,
        material: int = Material.PAINT,
    ) -> None:  # fmt: skip
        """Adds an ellipse that faces the camera."""
        self.polygon([(x + rx * cx, y + ry * cy, z) for cx, cy in CIRCLE], label, colour, material)

    def shadow(self, corners: Sequence[Point]) -> None:
        """Darkens whatever ground is seen within the polygon."""
        self.shadow_corners.extend(corners)
        self.shadow_lengths.append(len(corners))

    def shadow_disc(self, x: float, z: float, rx: float, rz: float) -> None:
        """Darkens the ground within an ellipse."""
        self.shadow([(x + rx * cx, 0.0, z + rz * cz) for cx, cz in CIRCLE])


def as_array(corners: Sequence[Point]) -> npt.NDArray[np.float64]:
    """Points as (N, 3), several times as fast as by ``np.array``."""
    return np.fromiter(chain.from_iterable(corners), np.float64, 3 * len(corners)).reshape(-1, 3)


def rasterise(sketch: Sketch, height: int, width: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Numbers of the polygons seen, (H, W) int32 from 1 on (0: sky), and where shadow falls, (H, W) uint8 0 or 1."""
    numbers = np.zeros((height, width), np.int32)
    flat = np.repeat(np.array(sketch.flat), sketch.lengths)
    corners = as_array(sketch.corners)
    shares = np.where(flat[:, None], corners[:, :2], sketch.camera.project(corners))
    _fill(numbers, shares, sketch.lengths, range(1, len(sketch.lengths) + 1))
    shaded = np.zeros((height, width), np.uint8)
    if sketch.shadow_lengths:
        shares = sketch.camera.project(as_array(sketch.shadow_corners))
        _fill(shaded, shares, sketch.shadow_lengths, [1] * len(sketch.shadow_lengths))
    return numbers, shaded


def _fill(
    canvas: npt.NDArray[np.int32] | npt.NDArray[np.uint8],
    shares: npt.NDArray[np.float64],
    lengths: Sequence[int],
    values: Sequence[int],
) -> None:
    # Whole pixels before filling: sub-pixel arithmetic is OpenCV's own affair and may change. The clip keeps corners
    # of what reaches beside the camera within the range of its integers.
    size = np.array([canvas.shape[1], canvas.shape[0]])
    pixels = np.floor(np.clip(shares, -8.0, 9.0) * size).astype(np.int32)
    start = 0
    for length, value in zip(lengths, values, strict=True):
        cv2.fillPoly(canvas, [pixels[start : start + length]], value, cv2.LINE_8, 0)
        start += length


def scaled(colour: Colour, factor: float) -> Colour:
    """A colour made lighter (> 1) or darker (< 1)."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """A colour between two: `share` 0 is the one, 1 the other."""
    red, green, blue = (start + (end - start) * share for start, end in zip(one, other, strict=True))
    return red, green, blue
