"""Vehicles: prisms with windows, wheels and lights, and two-wheelers with or without a rider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sfda.town.draw import CIRCLE, Colour, Dice, Material, Point, Sketch, mixed, scaled
from sfda.town.people import rider
from sfda.town.styles import Style

CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(13, 19)
LENGTHS = {"car": 4.4, "truck": 8.5, "bus": 11.0, "train": 24.0, "motorcycle": 2.1, "bicycle": 1.8}
TYRE: Colour = (26, 26, 28)
Profile = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """Where a vehicle stands (x, z of its middle) and where it heads (unit vector in the ground plane)."""

    x: float
    z: float
    dx: float
    dz: float

    def at(self, along: float, across: float, y: float) -> Point:
        """World point of a point in the vehicle: metres to its front, to its right, and up."""
        return self.x + along * self.dx + across * self.dz, y, self.z + along * self.dz - across * self.dx

    def sees(self, along: float, across: float) -> bool:
        """Whether the face that lies in this direction from the middle looks at the camera."""
        x, _, z = self.at(along, across, 0.0)
        return (x - self.x) * x + (z - self.z) * z < 0

    def heading(self, forwards: bool) -> Frame:
        """The same place, heading the same way or back."""
        return self if forwards else Frame(self.x, self.z, -self.dx, -self.dz)


def vehicle(sketch: Sketch, dice: Dice, style: Style, kind: str, frame: Frame) -> None:
    """Adds a vehicle of a kind (a key of `LENGTHS`), its shadow and, on two wheels, its rider."""
    if kind in ("bicycle", "motorcycle"):
        two_wheeler(sketch, dice, style, kind, frame, ridden=True)
        return
    half = LENGTHS[kind] / 2
    wide = 1.0 if kind == "car" else 1.3
    sketch.shadow([frame.at(u, w, 0.0) for u, w in ((half, wide), (half, -wide), (-half, -wide), (-half, wide))])
    {"car": _car, "truck": _truck, "bus": _bus, "train": _train}[kind](sketch, dice, style, frame)


def _prism(
    sketch: Sketch, frame: Frame, profile: Profile, half: float, label: int, colour: Colour, glass: dict[int, Colour]
) -> tuple[float, ...]:
    """Adds a side profile (metres ahead, up) pulled to a width; returns the sides (across) that are seen.

    `glass`: colours of the strips between corner i and i + 1 of the profile that are not of the body's colour.
    """
    strips = []
    for number, ((u0, y0), (u1, y1)) in enumerate(pairwise(profile)):
        steep = abs(y1 - y0) > 0.7 * abs(u1 - u0)
        shade = glass.get(number) or scaled(colour, 0.82 if steep else 1.12)
        corners = [frame.at(u0, -half, y0), frame.at(u1, -half, y1), frame.at(u1, half, y1), frame.at(u0, half, y0)]
        strips.append((-sum(x * x + z * z for x, _, z in corners), number, corners, shade))
    for _, _, corners, shade in sorted(strips):
        sketch.polygon(corners, label, shade)
    seen = tuple(across for across in (-half, half) if frame.sees(0.0, across))
    for across in seen:
        sketch.polygon([frame.at(u, across, y) for u, y in profile], label, scaled(colour, 0.95))
    return seen


def _on_side(
    sketch: Sketch, frame: Frame, across: float, corners: Profile, label: int, colour: Colour,
    material: int = Material.PAINT,
) -> None:  # fmt: skip
    sketch.polygon([frame.at(u, across, y) for u, y in corners], label, colour, material)


def _wheel(sketch: Sketch, frame: Frame, along: float, across: float, radius: float, label: int, hub: Colour) -> None:
    for share, colour in ((1.0, TYRE), (0.55, hub)):
        corners = [(along + radius * share * cu, radius + radius * share * cy) for cu, cy in CIRCLE]
        _on_side(sketch, frame, across, corners, label, colour)


def _end(
    sketch: Sketch, frame: Frame, along: float, x0: float, x1: float, y0: float, y1: float, label: int, colour: Colour,
    material: int = Material.PAINT,
) -> None:  # fmt: skip
    """Adds a rectangle to the front or back."""
    corners = [frame.at(along, x0, y0), frame.at(along, x0, y1), frame.at(along, x1, y1), frame.at(along, x1, y0)]
    sketch.polygon(corners, label, colour, material)


def _end_lights(sketch: Sketch, frame: Frame, half: float, wide: float, y: float, size: float, label: int) -> None:
    for along, colour in ((half, (250.0, 244.0, 214.0)), (-half, (196.0, 24.0, 22.0))):
        if frame.sees(along, 0.0):
            for side in (-1, 1):
                _end(sketch, frame, along, side * wide * 0.6, side * wide * 0.98, y, y + size, label, colour,
                     Material.LAMP)  # fmt: skip
            _end(sketch, frame, along, -0.26, 0.26, y - 0.24, y - 0.1, label, (214, 212, 200))


def _car(sketch: Sketch, dice: Dice, style: Style, frame: Frame) -> None:
    colour, glass = scaled(dice.pick(style.cars), dice(0.85, 1.1)), style.glass
    tall = dice(0.0, 0.22)
    rear = -1.1 if dice.chance(0.5) else -1.65
    top = 1.42 + tall
    profile = (
        (-2.15, 0.28), (-2.15, 0.9), (-1.8, 0.98), (rear, top), (0.45, top), (1.1, 0.98), (2.05, 0.82), (2.12, 0.28),
    )  # fmt: skip
    seen = _prism(sketch, frame, profile, 0.9, CAR, colour, {2: glass, 4: glass})
    for across in seen:
        windows = ((rear - 0.3, 1.0), (rear + 0.08, top - 0.08), (0.4, top - 0.08), (0.92, 1.0))
        _on_side(sketch, frame, across, windows, CAR, glass, Material.GLASS)
        _on_side(sketch, frame, across, ((-0.4, 1.0), (-0.4, top), (-0.3, top), (-0.3, 1.0)), CAR, colour)
        for along in (-1.32, 1.34):
            _wheel(sketch, frame, along, across, 0.34, CAR, (120, 122, 124))
    for along in (-2.16, 2.13):
        if frame.sees(along, 0.0):
            _end(sketch, frame, along, -0.88, 0.88, 0.24, 0.42, CAR, (44, 44, 46))
            for side in (-0.7, 0.7):
                _end(sketch, frame, along, side - 0.14, side + 0.14, 0.0, 0.3, CAR, TYRE)
    _end_lights(sketch, frame, 2.16, 0.9, 0.66, 0.18, CAR)


def _box(
    sketch: Sketch, frame: Frame, u0: float, u1: float, y0: float, y1: float, half: float, label: int, colour: Colour
) -> tuple[float, ...]:
    return _prism(sketch, frame, ((u0, y0), (u0, y1), (u1, y1), (u1, y0)), half, label, colour, {})


def _truck(sketch: Sketch, dice: Dice, style: Style, frame: Frame) -> None:
    cargo, cab = dice.pick(style.trucks), dice.pick(style.cars)
    tall = dice(2.9, 3.6)

    def draw_cab() -> None:
        for across in _box(sketch, frame, 2.2, 4.2, 0.5, 2.7, 1.15, TRUCK, cab):
            _on_side(sketch, frame, across, ((2.9, 1.6), (2.9, 2.4), (4.0, 2.4), (4.1, 1.6)), TRUCK, style.glass)
            _wheel(sketch, frame, 3.2, across, 0.5, TRUCK, (90, 90, 92))
        if frame.sees(4.2, 0.0):
            _end(sketch, frame, 4.21, -1.0, 1.0, 1.6, 2.5, TRUCK, style.glass, Material.GLASS)
            _end(sketch, frame, 4.21, -0.9, 0.9, 0.7, 1.2, TRUCK, (50, 50, 52))

    def draw_cargo() -> None:
        for across in _box(sketch, frame, -4.2, 2.0, 0.9, tall, 1.25, TRUCK, cargo):
            _on_side(sketch, frame, across, ((-4.2, 0.6), (-4.2, 0.95), (2, 0.95), (2, 0.6)), TRUCK, (48, 48, 50))
            for along in (-3.3, -2.2):
                _wheel(sketch, frame, along, across, 0.5, TRUCK, (90, 90, 92))
        if frame.sees(-4.2, 0.0):
            _end(sketch, frame, -4.21, -1.2, 1.2, 0.45, 0.9, TRUCK, (52, 52, 54))
            _end(sketch, frame, -4.21, -0.04, 0.04, 0.95, tall - 0.1, TRUCK, scaled(cargo, 0.55))
            _end(sketch, frame, -4.21, -1.1, -0.7, 0.0, 0.5, TRUCK, TYRE)
            _end(sketch, frame, -4.21, 0.7, 1.1, 0.0, 0.5, TRUCK, TYRE)

    for part in (draw_cab, draw_cargo) if frame.sees(-1.0, 0.0) else (draw_cargo, draw_cab):
        part()
    _end_lights(sketch, frame, 4.22, 1.15, 0.62, 0.22, TRUCK)


def _windows(
    sketch: Sketch, frame: Frame, across: float, u0: float, u1: float, step: float, y0: float, y1: float, label: int,
    colour: Colour,
) -> None:  # fmt: skip
    for number in range(int((u1 - u0) / step)):
        u = u0 + number * step
        corners = ((u, y0), (u, y1), (u + step * 0.86, y1), (u + step * 0.86, y0))
        _on_side(sketch, frame, across, corners, label, colour, Material.GLASS)


def _bus(sketch: Sketch, dice: Dice, style: Style, frame: Frame) -> None:
    colour = dice.pick(style.buses)
    for across in _box(sketch, frame, -5.5, 5.5, 0.35, 3.1, 1.27, BUS, colour):
        _windows(sketch, frame, across, -5.2, 5.2, 1.45, 1.4, 2.6, BUS, style.glass)
        _on_side(sketch, frame, across, ((-5.5, 0.75), (-5.5, 0.95), (5.5, 0.95), (5.5, 0.75)), BUS,
                 mixed(colour, (240, 240, 240), 0.6))  # fmt: skip
        for along in (-3.2, 3.3):
            _wheel(sketch, frame, along, across, 0.5, BUS, (96, 96, 98))
    for along in (-5.5, 5.5):
        if frame.sees(along, 0.0):
            _end(sketch, frame, along, -1.12, 1.12, 1.3 if along > 0 else 1.7, 2.55, BUS, style.glass, Material.GLASS)
            _end(sketch, frame, along, -0.8, 0.8, 2.68, 2.98, BUS, (34, 34, 32))
            _end(sketch, frame, along, -0.6, 0.6, 2.74, 2.92, BUS, (236, 168, 40), Material.LAMP)
            _end(sketch, frame, along, -1.2, 1.2, 0.1, 0.45, BUS, (40, 40, 42))
    _end_lights(sketch, frame, 5.52, 1.2, 0.7, 0.25, BUS)


def _train(sketch: Sketch, dice: Dice, style: Style, frame: Frame) -> None:
    colour = dice.pick(style.trains)
    band = mixed(colour, (60, 30, 30), 0.7)
    profile = ((-12.0, 0.4), (-12.0, 1.4), (-11.5, 3.2), (-11.0, 3.5), (11.0, 3.5), (11.5, 3.2), (12.0, 1.4), (12, 0.4))
    for across in _prism(sketch, frame, profile, 1.3, TRAIN, colour, {1: style.glass, 5: style.glass}):
        _on_side(sketch, frame, across, ((-12, 0.3), (-12, 1.15), (12, 1.15), (12, 0.3)), TRAIN, band)
        _windows(sketch, frame, across, -11, 11, 1.9, 1.5, 2.8, TRAIN, style.glass)
        for along in (-4.0, 4.0):
            _on_side(sketch, frame, across, ((along, 0.3), (along, 3.4), (along + 0.5, 3.4), (along + 0.5, 0.3)),
                     TRAIN, (46, 46, 48))  # fmt: skip
    for along in (-12.0, 12.0):
        if frame.sees(along, 0.0):
            _end(sketch, frame, along, -1.28, 1.28, 0.3, 1.3, TRAIN, band)
            _end(sketch, frame, along, -1.1, 1.1, 0.05, 0.4, TRAIN, (38, 38, 40))
            _end(sketch, frame, along * 0.965, -0.7, 0.7, 3.0, 3.3, TRAIN, (240, 180, 50), Material.LAMP)
    _end_lights(sketch, frame, 12.02, 1.1, 0.75, 0.25, TRAIN)


def two_wheeler(sketch: Sketch, dice: Dice, style: Style, kind: str, frame: Frame, ridden: bool) -> None:
    """Adds a bicycle or a motorcycle, with or without its rider."""
    sketch.shadow([frame.at(u, w, 0.0) for u, w in ((0.9, 0.3), (0.9, -0.3), (-0.9, -0.3), (-0.9, 0.3))])
    (_bicycle if kind == "bicycle" else _motorcycle)(sketch, dice, style, frame)
    if ridden:
        rider(sketch, dice, style, frame.x, frame.z, 0.88 if kind == "bicycle" else 0.82, helmet=kind == "motorcycle")


def _bicycle(sketch: Sketch, dice: Dice, style: Style, frame: Frame) -> None:
    colour = dice.pick(style.cars)
    for along in (-0.52, 0.52):
        # Seen from behind a wheel would vanish: its tyre is given a width of its own.
        _end(sketch, frame, along, -0.06, 0.06, 0.0, 0.7, BICYCLE, TYRE)
        _wheel(sketch, frame, along, 0.0, 0.36, BICYCLE, mixed(TYRE, style.asphalt[0], 0.7))
    for tube in (
        ((-0.52, 0.3), (-0.52, 0.4), (-0.1, 0.95), (0.0, 0.9)),
        ((-0.15, 0.75), (-0.15, 0.88), (0.45, 0.92), (0.45, 0.78)),
        ((-0.05, 0.25), (0.05, 0.25), (0.5, 0.85), (0.4, 0.9)),
        ((0.38, 1.05), (0.48, 1.05), (0.58, 0.32), (0.48, 0.32)),
    ):
        _on_side(sketch, frame, 0.0, tube, BICYCLE, colour)
    _end(sketch, frame, 0.4, -0.3, 0.3, 1.0, 1.1, BICYCLE, (40, 40, 42))
    _on_side(sketch, frame, 0.0, ((-0.3, 0.92), (-0.3, 1.02), (0.05, 1.02), (0.05, 0.94)), BICYCLE, (34, 32, 32))


def _motorcycle(sketch: Sketch, dice: Dice, style: Style, frame: Frame) -> None:
    colour = dice.pick(style.cars)
    for along in (-0.68, 0.68):
        _end(sketch, frame, along, -0.11, 0.11, 0.0, 0.66, MOTORCYCLE, TYRE)
        _wheel(sketch, frame, along, 0.0, 0.34, MOTORCYCLE, (110, 110, 112))
    body = ((-0.95, 0.5), (-0.9, 0.92), (-0.2, 0.82), (0.1, 1.0), (0.5, 1.05), (0.65, 0.7), (0.3, 0.28), (-0.4, 0.28))
    seen = _prism(sketch, frame, body, 0.2, MOTORCYCLE, colour, {1: (30, 28, 28)})
    for across in seen:
        _on_side(sketch, frame, across, ((-0.35, 0.25), (-0.3, 0.6), (0.25, 0.6), (0.3, 0.25)), MOTORCYCLE,
                 (64, 62, 62))  # fmt: skip
    _end(sketch, frame, 0.45, -0.38, 0.38, 1.05, 1.15, MOTORCYCLE, (36, 36, 38))
    for along, light in ((0.7, (250.0, 244.0, 214.0)), (-0.96, (190.0, 26.0, 24.0))):
        if frame.sees(along, 0.0):
            _end(sketch, frame, along, -0.14, 0.14, 0.7, 0.9, MOTORCYCLE, light, Material.LAMP)
