"""The layout of a scene: camera, ground, what lines the street, and what moves in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sfda.data.label_spaces import IGNORE
from sfda.data.streets.draw import Camera, Colour, Dice, Material, Sketch, mixed, scaled
from sfda.data.streets.people import person
from sfda.data.streets.roadside import bollard, bush, foliage, street_lamp, traffic_light, traffic_sign, tree
from sfda.data.streets.sides import BUILDING, SIDEWALK, TERRAIN, Stretch, line
from sfda.data.streets.styles import Style
from sfda.data.streets.vehicles import LENGTHS, Frame, two_wheeler, vehicle

ROAD = 0
FAR = 130.0  # metres: where the street ends
HORIZON = 400.0


@dataclass(frozen=True)
class Street:
    """The cross-section: x of the road's middle, half its width, the width of the sidewalks and of the verges."""

    middle: float
    half: float
    sidewalk: float
    verges: tuple[float, float]
    sun: int  # side from which the sun shines

    def kerb(self, side: int) -> float:
        """X of the road's edge."""
        return self.middle + side * self.half

    def verge(self, side: int) -> float:
        """Width of the strip of grass beyond the sidewalk."""
        return self.verges[side > 0]

    def front(self, side: int) -> float:
        """X where buildings begin."""
        return self.kerb(side) + side * (self.sidewalk + self.verge(side))


Thing = tuple[float, Callable[[Sketch, Dice, Style], None]]


def compose(style: Style, dice: Dice) -> Sketch:
    """A street of a style as polygons from back to front."""
    sketch = Sketch(
        Camera(
            height=dice(*style.camera_height),
            focal=dice(*style.focal),
            horizon=dice(*style.horizon),
            vanishing=dice(0.42, 0.58),
            bend=dice(-0.002, 0.002) if dice.chance(0.5) else 0.0,
        )
    )
    half = dice(*style.road)
    verges = tuple(dice(1.0, 3.5) if dice.chance(style.terrain) else 0.0 for _ in range(2))
    street = Street(-half * dice(0.3, 0.6), half, dice(*style.sidewalk), (verges[0], verges[1]), dice.pick((-1, 1)))
    stretches = {side: _stretches(dice, style, street, side) for side in (-1, 1)}
    _backdrop(sketch, dice, style)
    _ground(sketch, dice, style, street, stretches)
    for side in (-1, 1):
        for kind, stretch in reversed(stretches[side]):
            line(sketch, dice, style, kind, stretch)
            if side == street.sun and kind == "building":
                reach = stretch.x - side * dice(2.0, 9.0)
                z0, z1 = stretch.z0, stretch.z1
                sketch.shadow([(stretch.x, 0, z0), (reach, 0, z0 + 1), (reach, 0, z1 + 1), (stretch.x, 0, z1)])
    things = _traffic(dice, style, street) + _furniture(dice, style, street) + _people(dice, street, style)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw(sketch, dice, style)
    if dice.chance(style.bonnet):
        _bonnet(sketch, dice)
    return sketch


def _stretches(dice: Dice, style: Style, street: Street, side: int) -> list[tuple[str, Stretch]]:
    stretches, z = [], dice(-8.0, 2.0)
    light = 1.0 + style.sun * (-0.6 if side == street.sun else 0.6)
    while z < FAR:
        kind = dice.weighted(style.sides)
        long = dice(7.0, 11.0) if kind == "crossing" else dice(8.0, 18.0)
        stretches.append((kind, Stretch(side, street.front(side), z, z + long, light)))
        z += long + (dice(1.0, 4.0) if dice.chance(0.2) else 0.0)
    return stretches


def _backdrop(sketch: Sketch, dice: Dice, style: Style) -> None:
    x = -330.0
    trees = dice(0.2, 0.7)
    while x < 330.0:
        wide = dice(14.0, 40.0)
        if dice.chance(trees):
            foliage(sketch, dice, style, x + wide / 2, 4.0, 300.0, wide * 0.7, 8.0, 3)
        else:
            sketch.upright(x, x + wide, 0.0, dice(12.0, 45.0), 300.0, BUILDING, dice.pick(style.facades))
        x += wide


def _strip(sketch: Sketch, x0: float, x1: float, label: int, colour: Colour, material: int) -> None:
    # Cut along z because the road may bend.
    cuts = (0.5, 4.0, 8.0, 14.0, 22.0, 32.0, 45.0, 60.0, 80.0, 105.0, FAR + 20.0)
    near = [(x0, 0.0, z) for z in cuts]
    sketch.polygon(near + [(x1, 0.0, z) for z in reversed(cuts)], label, colour, material)


def _ground(
    sketch: Sketch, dice: Dice, style: Style, street: Street, stretches: dict[int, list[tuple[str, Stretch]]]
) -> None:
    asphalt, paving, grass = dice.pick(style.asphalt), dice.pick(style.paving), dice.pick(style.grass)
    asphalt = scaled(asphalt, dice(0.9, 1.1))
    if style.terrain > 0:
        sketch.lying(-400.0, 400.0, 0.5, HORIZON, TERRAIN, grass, Material.GRASS)
    else:
        sketch.lying(-400.0, 400.0, 0.5, HORIZON, SIDEWALK, paving, Material.PAVING)
    for side in (-1, 1):
        kerb, front = street.kerb(side), street.front(side)
        if street.verge(side):
            _strip(sketch, kerb, front, TERRAIN, grass, Material.GRASS)
        _strip(sketch, kerb, kerb + side * street.sidewalk, SIDEWALK, paving, Material.PAVING)
        _slabs(sketch, kerb, side * street.sidewalk, paving)
        for kind, stretch in stretches[side]:
            if kind == "crossing":
                sketch.lying(kerb, kerb + side * 40.0, stretch.z0 + 1.5, stretch.z1 - 1.5, ROAD, asphalt)
    _strip(sketch, street.kerb(-1), street.kerb(1), ROAD, asphalt, Material.GROUND)
    for side in (-1, 1):
        kerb = street.kerb(side)
        _strip(sketch, kerb, kerb + side * 0.22, SIDEWALK, scaled(paving, 1.15), Material.PAVING)
        _strip(sketch, kerb - side * 0.18, kerb, ROAD, scaled(asphalt, 0.72), Material.GROUND)
    for _ in range(dice.count(3.0)):
        x, z = dice(street.kerb(-1) + 1, street.kerb(1) - 1), dice(4.0, 30.0)
        sketch.lying(x - dice(0.4, 1.2), x + 0.6, z, z + dice(0.8, 5.0), ROAD, scaled(asphalt, dice(0.8, 1.12)))
    _markings(sketch, dice, style, street)


def _slabs(sketch: Sketch, kerb: float, wide: float, paving: Colour) -> None:
    for number in range(12):
        z = 2.5 * number + 2.0
        sketch.lying(kerb, kerb + wide, z, z + 0.05 + z * 0.004, SIDEWALK, scaled(paving, 0.85), Material.PAVING)


def _markings(sketch: Sketch, dice: Dice, style: Style, street: Street) -> None:
    solid, wide, phase = dice.chance(0.4), 0.09, dice(0.0, 6.0)
    if solid:
        for shift in (-0.16, 0.16):
            x = street.middle + shift
            _strip(sketch, x - 0.07, x + 0.07, ROAD, style.centre_marking, Material.GROUND)
    lanes = [] if solid else [(street.middle, style.centre_marking)]
    if street.half > 5.5:
        lanes += [(street.middle + street.half * 0.5 * side, style.marking) for side in (-1, 1)]
    for x, colour in lanes:
        for number in range(12):
            z = phase + 6.0 * number
            sketch.lying(x - wide, x + wide, z, z + 3.0, ROAD, colour)
    if dice.chance(0.5):
        for side in (-1, 1):
            x = street.kerb(side) - side * 0.5
            _strip(sketch, x - 0.07, x + 0.07, ROAD, style.marking, Material.GROUND)
    if dice.chance(0.35):
        z, x = dice(7.0, 22.0), street.kerb(-1) + 0.4
        while x < street.kerb(1) - 0.5:
            sketch.lying(x, x + 0.5, z, z + 3.0, ROAD, style.marking)
            x += 1.0
    if dice.chance(style.rails):
        for x in (street.middle - 2.4, street.middle - 1.0, street.middle + 1.0, street.middle + 2.4):
            _strip(sketch, x - 0.06, x + 0.06, ROAD, (66, 64, 64), Material.GROUND)


def _traffic(dice: Dice, style: Style, street: Street) -> list[Thing]:
    things: list[Thing] = []
    for side in (-1, 1):
        x, z = street.middle + side * street.half * 0.42, dice(7.0, 16.0)
        while z < 75.0:
            kind = dice.weighted(style.traffic)
            if dice.chance(style.density):
                long = LENGTHS[kind]
                aside = x + (side * street.half * 0.3 if kind in ("bicycle", "motorcycle") else 0.0)
                frame = Frame(aside + dice(-0.3, 0.3), z + long / 2, 0.0, 1.0).heading(side > 0)
                if kind in ("bicycle", "motorcycle"):
                    frame = _turned(dice, frame)
                things.append((z, partial(_vehicle, kind=kind, frame=frame)))
                z += long
            z += dice(3.0, 12.0)
        z = dice(5.0, 12.0)
        while z < 60.0:
            if dice.chance(style.parked):
                kind = "truck" if "truck" in style.traffic and dice.chance(0.05) else "car"
                frame = Frame(street.kerb(side) - side * 1.15, z + LENGTHS[kind] / 2, 0.0, 1.0)
                things.append((z, partial(_vehicle, kind=kind, frame=frame.heading(dice.chance(0.7)))))
                z += LENGTHS[kind] - 4.4
            z += dice(5.4, 7.0)
    return things


def _vehicle(sketch: Sketch, dice: Dice, style: Style, kind: str, frame: Frame) -> None:
    vehicle(sketch, dice, style, kind, frame)


def _turned(dice: Dice, frame: Frame) -> Frame:
    dx, dz = dice.pick(((0.0, 1.0), (0.6, 0.8), (-0.6, 0.8), (0.96, 0.28), (-0.96, 0.28)))
    return Frame(frame.x, frame.z, dx, dz * frame.dz)


def _furniture(dice: Dice, style: Style, street: Street) -> list[Thing]:
    things: list[Thing] = []

    def spot(high: float) -> tuple[float, float, int]:
        side = dice.pick((-1, 1))
        return street.kerb(side) + side * 0.5, dice.near(5.0, high), -side

    for _ in range(dice.count(style.poles)):
        x, z, towards = spot(50.0)
        things.append((z, partial(street_lamp, x=x, z=z, towards=towards) if dice.chance(0.75)
                       else partial(bollard, x=x, z=z)))  # fmt: skip
    for _ in range(dice.count(style.lights)):
        x, z, towards = spot(32.0)
        things.append((z, partial(traffic_light, x=x, z=z, towards=towards)))
    for _ in range(dice.count(style.signs)):
        x, z, _ = spot(30.0)
        things.append((z, partial(traffic_sign, x=x, z=z)))
    for _ in range(dice.count(style.trees)):
        x, z, towards = spot(70.0)
        away = max(street.verge(-towards) / 2 + street.sidewalk, 1.2)
        things.append((z + 2.0, partial(tree, x=x - towards * dice(0.4, away), z=z + 2.0)))
    for side in (-1, 1):
        if street.verge(side) > 1.5 and dice.chance(0.5):
            x = street.kerb(side) + side * (street.sidewalk + street.verge(side) * 0.6)
            things += [(z, partial(bush, x=x, z=z)) for z in (dice.near(5.0, 40.0) for _ in range(4))]
    for _ in range(dice.count(style.two_wheelers)):
        x, z, towards = spot(22.0)
        kind = "bicycle" if dice.chance(0.6) else "motorcycle"
        frame = _turned(dice, Frame(x - towards * dice(0.3, 1.2), z, 0.0, 1.0))
        things.append((z, partial(two_wheeler, kind=kind, frame=frame, ridden=False)))
    return things


def _people(dice: Dice, street: Street, style: Style) -> list[Thing]:
    things: list[Thing] = []
    for _ in range(dice.count(style.people)):
        side, z = dice.pick((-1, 1)), dice.near(5.0, 40.0)
        on_road = dice.chance(0.12)
        x = dice(street.kerb(-1), street.kerb(1)) if on_road else street.kerb(side) + side * dice(0.5, street.sidewalk)
        things.append((z, partial(person, x=x, z=z)))
        if dice.chance(0.3):
            things.append((z + 0.1, partial(person, x=x + 0.6, z=z + 0.1)))
    return things


def _bonnet(sketch: Sketch, dice: Dice) -> None:
    top = dice(0.9, 0.93)
    colour = mixed((52, 56, 58), (96, 100, 102), dice(0.0, 1.0))
    left = ((-0.1, 1.1), (0.04, top + 0.05), (0.3, top + 0.01))
    right = [(1.0 - x, y) for x, y in reversed(left)]
    sketch.flat_polygon((*left, (0.5, top), *right), IGNORE, colour)
    sketch.flat_polygon(((0.44, 1.1), (0.47, top + 0.02), (0.53, top + 0.02), (0.56, 1.1)), IGNORE, scaled(colour, 1.3))
