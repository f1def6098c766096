"""The layout of a scene: camera, street, what lines it, and what stands and moves in it."""

from collections.abc import Callable
from functools import partial

from sfda.data.label_spaces import IGNORE
from sfda.town.draw import Camera, Dice, Sketch, mixed, scaled
from sfda.town.people import person
from sfda.town.roadside import bollard, bush, foliage, street_lamp, traffic_light, traffic_sign, tree
from sfda.town.sides import BUILDING, Stretch, line
from sfda.town.street import FAR, Street, ground
from sfda.town.styles import Style
from sfda.town.vehicles import LENGTHS, Frame, two_wheeler, vehicle

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
    ground(sketch, dice, style, street, stretches)
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


def _traffic(dice: Dice, style: Style, street: Street) -> list[Thing]:
    things: list[Thing] = []
    for side in (-1, 1):
        things += _lane(dice, style, street, side)
        things += _kerbside(dice, style, street, side)
    return things


def _lane(dice: Dice, style: Style, street: Street, side: int) -> list[Thing]:
    things: list[Thing] = []
    z = dice(7.0, 16.0)
    while z < 75.0:
        kind = dice.weighted(style.traffic)
        if dice.chance(style.density):
            two_wheels, long = kind in ("bicycle", "motorcycle"), LENGTHS[kind]
            x = street.middle + side * street.half * (0.72 if two_wheels else 0.42) + dice(-0.3, 0.3)
            frame = Frame(x, z + long / 2, 0.0, 1.0).heading(side > 0)
            frame = _turned(dice, frame) if two_wheels else frame
            things.append((z, partial(vehicle, kind=kind, frame=frame)))
            z += long
        z += dice(3.0, 12.0)
    return things


def _kerbside(dice: Dice, style: Style, street: Street, side: int) -> list[Thing]:
    things: list[Thing] = []
    z = dice(5.0, 12.0)
    while z < 60.0:
        if dice.chance(style.parked):
            kind = "truck" if "truck" in style.traffic and dice.chance(0.05) else "car"
            frame = Frame(street.kerb(side) - side * 1.15, z + LENGTHS[kind] / 2, 0.0, 1.0)
            things.append((z, partial(vehicle, kind=kind, frame=frame.heading(dice.chance(0.7)))))
            z += LENGTHS[kind] - LENGTHS["car"]
        z += dice(5.4, 7.0)
    return things


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
        x, z, towards = spot(20.0)
        kind, ridden = dice.pick(("bicycle", "motorcycle")), dice.chance(0.45)
        frame = _turned(dice, Frame(x + towards * (3.0 if ridden else dice(-1.2, 0.0)), z, 0.0, 1.0))
        things.append((z, partial(two_wheeler, kind=kind, frame=frame, ridden=ridden)))
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
