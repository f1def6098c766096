"""What lines the street: buildings, walls, fences and parks, each a stretch along one side."""

from dataclasses import dataclass

from sfda.town.draw import Colour, Dice, Material, Sketch, mixed, scaled
from sfda.town.roadside import bush, foliage, tree
from sfda.town.styles import Style

SIDEWALK, BUILDING, WALL, FENCE, TERRAIN = 1, 2, 3, 4, 9


@dataclass(frozen=True)
class Stretch:
    """A stretch of one side of the street."""

    side: int  # -1 left, 1 right
    x: float  # where it begins, away from the road
    z0: float  # its near end
    z1: float
    light: float  # brightness of what faces the road

    def out(self, metres: float) -> float:
        """X of a point so far from the beginning, away from the road."""
        return self.x + self.side * metres


def line(sketch: Sketch, dice: Dice, style: Style, kind: str, stretch: Stretch) -> None:
    """Adds a stretch of a kind (a key of `Style.sides`; a crossing is left open)."""
    if kind == "building":
        _building(sketch, dice, style, stretch)
    elif kind in ("wall", "fence"):
        _behind(sketch, dice, style, stretch)
        (_wall if kind == "wall" else _fence)(sketch, dice, style, stretch)
    elif kind == "park":
        _park(sketch, dice, style, stretch)


def _building(sketch: Sketch, dice: Dice, style: Style, at: Stretch) -> None:
    colour = scaled(dice.pick(style.facades), dice(0.85, 1.12))
    storey, floors = dice(2.9, 3.5), int(dice(*style.storeys) + 0.5)
    tall, front = storey * floors + 0.6, scaled(colour, at.light * 0.85)
    face = scaled(colour, at.light)
    glass = mixed(style.glass, colour, dice(0.0, 0.25))
    base = mixed(colour, (70, 64, 60), dice(0.2, 0.7))
    sketch.upright(at.x, at.out(12.0), 0.0, tall, at.z0, BUILDING, front, Material.FACADE)
    sketch.alongside(at.x, 0.0, tall, at.z0, at.z1, BUILDING, face, Material.FACADE)
    sketch.alongside(at.x, 0.0, storey * 0.95, at.z0, at.z1, BUILDING, scaled(base, at.light), Material.FACADE)
    sketch.upright(at.x, at.out(12.0), 0.0, storey * 0.95, at.z0, BUILDING, scaled(base, at.light * 0.85),
                   Material.FACADE)  # fmt: skip
    roof = dice.pick(style.roofs)
    sketch.alongside(at.x, tall - 0.7, tall, at.z0, at.z1, BUILDING, scaled(roof, at.light), Material.FACADE)
    _windows_along(sketch, dice, at, storey, floors, scaled(glass, 0.8 + 0.3 * at.light))
    if at.z0 < 60:
        _windows_across(sketch, at, storey, floors, scaled(glass, 0.85))


def _windows_along(sketch: Sketch, dice: Dice, at: Stretch, storey: float, floors: int, glass: Colour) -> None:
    columns = max(2, int((at.z1 - at.z0) / dice(2.4, 3.6)))
    step = (at.z1 - at.z0) / columns
    wide, high = dice(0.4, 0.75), dice(0.42, 0.62)
    for floor in range(1, min(floors, 8)):
        y0 = floor * storey + storey * 0.2
        y1 = y0 + storey * high
        if at.z0 > 45:
            sketch.alongside(at.x, y0, y1, at.z0 + 0.8, at.z1 - 0.8, BUILDING, scaled(glass, 1.25), Material.GLASS)
            continue
        for column in range(columns):
            z = at.z0 + column * step + step * (1 - wide) / 2
            if z + step * wide > 2.0:
                shade = scaled(glass, dice.pick((0.8, 0.95, 1.0, 1.1, 1.35)))
                sketch.alongside(at.x, y0, y1, z, z + step * wide, BUILDING, shade, Material.GLASS)
    for column in range(0, columns, 2):
        z = at.z0 + column * step + step * 0.15
        if z > 2.0 and at.z0 < 60:
            door = dice.chance(0.3)
            sketch.alongside(at.x, 0.0 if door else 0.6, 2.3, z, z + step * (0.4 if door else 0.9), BUILDING,
                             scaled(glass, 0.7), Material.GLASS)  # fmt: skip


def _windows_across(sketch: Sketch, at: Stretch, storey: float, floors: int, glass: Colour) -> None:
    for floor in range(1, min(floors, 7)):
        y0 = floor * storey + storey * 0.25
        for number in range(3):
            x0, x1 = at.out(1.2 + number * 3.4), at.out(2.8 + number * 3.4)
            sketch.upright(x0, x1, y0, y0 + storey * 0.5, at.z0, BUILDING, glass, Material.GLASS)


def _behind(sketch: Sketch, dice: Dice, style: Style, at: Stretch) -> None:
    """Adds what looks over a wall or fence: a house set back, or trees."""
    if dice.chance(0.5):
        _building(sketch, dice, style, Stretch(at.side, at.out(5.0), at.z0 + 1.0, at.z1 - 1.0, at.light))
    else:
        _grove(sketch, dice, style, at, dice(3.0, 5.0))


def _grove(sketch: Sketch, dice: Dice, style: Style, at: Stretch, away: float) -> None:
    z = at.z1
    while z > max(at.z0, 4.0):
        radius = dice(2.0, 3.2)
        foliage(sketch, dice, style, at.out(away + dice(0.0, 2.0)), radius * 0.8, z, radius, radius * 1.2, 6)
        z -= radius * 1.3


def _wall(sketch: Sketch, dice: Dice, style: Style, at: Stretch) -> None:
    colour, tall = scaled(dice.pick(style.walls), dice(0.9, 1.1)), dice(1.4, 2.8)
    sketch.upright(at.x, at.out(0.4), 0.0, tall, at.z0, WALL, scaled(colour, 0.8 * at.light), Material.FACADE)
    for z0, z1 in _pieces(at, 4.0):
        sketch.alongside(at.x, 0.0, tall, z0, z1, WALL, scaled(colour, at.light), Material.FACADE)
        for share in (0.33, 0.66):
            sketch.alongside(at.x, tall * share - 0.03, tall * share + 0.03, z0, z1, WALL,
                             scaled(colour, 0.8 * at.light), Material.FACADE)  # fmt: skip
        sketch.alongside(at.x, 0.0, tall, z0, z0 + 0.12, WALL, scaled(colour, 0.75 * at.light), Material.FACADE)
    sketch.alongside(at.x, tall - 0.15, tall + 0.06, at.z0, at.z1, WALL, scaled(colour, 1.18 * at.light))


def _fence(sketch: Sketch, dice: Dice, style: Style, at: Stretch) -> None:
    colour, tall = scaled(dice.pick(style.fences), dice(0.9, 1.1)), dice(1.1, 2.0)
    through = mixed(style.foliage[0], style.grass[0], dice(0.2, 0.8))
    for z0, z1 in _pieces(at, 2.0 if at.z0 < 30 else 5.0):
        sketch.alongside(at.x, 0.05, tall, z0, z1, FENCE, scaled(mixed(through, colour, 0.3), 0.9), Material.FOLIAGE)
        bars = 5 if z0 < 14 else 2
        for number in range(bars):
            z = z0 + (z1 - z0) * number / bars
            sketch.alongside(at.x, 0.0, tall, z, z + (z1 - z0) * 0.4 / bars, FENCE, scaled(colour, at.light))
        for y in (0.15, tall - 0.12):
            sketch.alongside(at.x, y, y + 0.12, z0, z1, FENCE, scaled(colour, 1.1 * at.light))


def _park(sketch: Sketch, dice: Dice, style: Style, at: Stretch) -> None:
    if style.terrain > 0:
        for z0, z1 in _pieces(at, 8.0):
            sketch.lying(at.x, at.out(25.0), z0, z1, TERRAIN, dice.pick(style.grass), Material.GRASS)
    _grove(sketch, dice, style, at, dice(7.0, 11.0))
    spots = sorted((dice(at.z0 + 1, at.z1 - 1) for _ in range(dice.count(2.0))), reverse=True)
    for z in spots:
        if z > 5.0:
            (tree if dice.chance(0.6) else bush)(sketch, dice, style, at.out(dice(1.5, 5.0)), z)


def _pieces(at: Stretch, longest: float) -> list[tuple[float, float]]:
    """The stretch cut into pieces, far ones first: haze and texture then change along it."""
    count = int((at.z1 - at.z0) / longest) + 1
    step = (at.z1 - at.z0) / count
    cuts = [(at.z0 + number * step, at.z0 + (number + 1) * step) for number in reversed(range(count))]
    return [(z0, z1) for z0, z1 in cuts if z1 > 1.0]
