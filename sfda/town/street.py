"""The street itself: its cross-section, and what is painted on the ground."""

from dataclasses import dataclass

from sfda.town.draw import Colour, Dice, Material, Sketch, scaled
from sfda.town.sides import SIDEWALK, TERRAIN, Stretch
from sfda.town.styles import Style

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


def _strip(sketch: Sketch, x0: float, x1: float, label: int, colour: Colour, material: int) -> None:
    # Cut along z because the road may bend.
    cuts = (0.5, 4.0, 8.0, 14.0, 22.0, 32.0, 45.0, 60.0, 80.0, 105.0, FAR + 20.0)
    near = [(x0, 0.0, z) for z in cuts]
    sketch.polygon(near + [(x1, 0.0, z) for z in reversed(cuts)], label, colour, material)


def ground(
    sketch: Sketch, dice: Dice, style: Style, street: Street, stretches: dict[int, list[tuple[str, Stretch]]]
) -> None:
    """Adds grass, sidewalks, crossings and the road; `stretches` tells where side roads open."""
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
