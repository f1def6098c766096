"""What stands at the kerb: trees, bushes, poles, traffic lights and signs."""

from sfda.town.draw import CIRCLE, Colour, Dice, Material, Sketch, mixed, scaled
from sfda.town.styles import Style

POLE, LIGHT, SIGN, VEGETATION = 5, 6, 7, 8
ROUGH = (0.8, 1.14, 0.92, 1.06, 0.84, 1.18, 1.0, 0.78, 1.1, 0.88, 1.16, 0.95)  # radii around a clump of leaves


def blob(sketch: Sketch, dice: Dice, x: float, y: float, z: float, radius: float, colour: Colour) -> None:
    """Adds an irregular clump of leaves."""
    turn = int(dice(0.0, 12.0))
    outline = zip(CIRCLE, ROUGH[turn:] + ROUGH[:turn], strict=True)
    corners = [(x + cx * radius * reach, max(0.0, y + cy * radius * reach), z) for (cx, cy), reach in outline]
    sketch.polygon(corners, VEGETATION, colour, Material.FOLIAGE)


def foliage(
    sketch: Sketch, dice: Dice, style: Style, x: float, y: float, z: float, radius: float, tall: float, clumps: int
) -> None:
    """Adds a crown or bush: dark clumps at the back, lighter ones to the top."""
    colour = dice.pick(style.foliage)
    blob(sketch, dice, x, y, z, radius * 0.9, scaled(colour, 0.7))
    for number in range(clumps):
        up = dice(-1.0, 1.0) * 0.4 + (number / clumps - 0.5) * 0.9
        aside = dice(-0.75, 0.75)
        tone = 0.72 + 0.4 * (number / clumps) + style.sun * 0.6 * (up + aside * 0.4) + dice(-0.08, 0.08)
        blob(sketch, dice, x + aside * radius, y + up * tall, z, radius * dice(0.3, 0.52), scaled(colour, tone))


def tree(sketch: Sketch, dice: Dice, style: Style, x: float, z: float) -> None:
    """Adds a tree; its trunk counts as vegetation, as in Cityscapes."""
    size = dice(0.75, 1.35)
    trunk: Colour = mixed((96, 78, 62), style.foliage[0], 0.2)
    sketch.shadow_disc(x + 0.6, z, 1.7 * size, 1.2 * size)
    thick = 0.2 * size
    sketch.polygon(
        ((x - thick, 0, z), (x - thick * 0.7, 3.2 * size, z), (x + thick * 0.7, 3.2 * size, z), (x + thick, 0, z)),
        VEGETATION, trunk, Material.FOLIAGE,
    )  # fmt: skip
    foliage(sketch, dice, style, x, 4.3 * size, z, 1.9 * size, 1.7 * size, 5 if z > 45 else 13)


def bush(sketch: Sketch, dice: Dice, style: Style, x: float, z: float) -> None:
    """Adds a bush."""
    foliage(sketch, dice, style, x, 0.55, z, dice(0.7, 1.2), 0.6, 5)


def _shaft(sketch: Sketch, dice: Dice, style: Style, x: float, z: float, tall: float, thick: float) -> Colour:
    colour = dice.pick(style.metal)
    sketch.upright(x - thick, x, 0.0, tall, z, POLE, scaled(colour, 0.8))
    sketch.upright(x, x + thick, 0.0, tall, z, POLE, scaled(colour, 1.15))
    return colour


def street_lamp(sketch: Sketch, dice: Dice, style: Style, x: float, z: float, towards: float) -> None:
    """Adds a lamp post whose arm reaches over the road (`towards`: sign of x)."""
    tall, reach = dice(5.5, 8.0), dice(1.0, 2.2) * towards
    colour = _shaft(sketch, dice, style, x, z, tall, 0.13)
    sketch.polygon(
        ((x, tall - 0.16, z), (x, tall, z), (x + reach, tall + 0.3, z), (x + reach, tall + 0.14, z)), POLE, colour
    )
    lamp = ((x + reach * 0.75, tall, z), (x + reach * 0.75, tall + 0.3, z), (x + reach * 1.25, tall + 0.3, z))
    sketch.polygon((*lamp, (x + reach * 1.25, tall + 0.1, z)), POLE, (226, 224, 206), Material.LAMP)


def bollard(sketch: Sketch, dice: Dice, style: Style, x: float, z: float) -> None:
    """Adds a short post."""
    _shaft(sketch, dice, style, x, z, dice(0.9, 1.2), 0.11)


def _light_box(sketch: Sketch, dice: Dice, style: Style, x: float, y: float, z: float) -> None:
    sketch.upright(x - 0.22, x + 0.22, y, y + 1.15, z, LIGHT, style.light_box)
    lit = dice.pick((0, 2))
    for number, colour in enumerate(((40.0, 220.0, 110.0), (250.0, 170.0, 30.0), (240.0, 40.0, 30.0))):
        shown, material = (colour, Material.LAMP) if number == lit else (scaled(colour, 0.28), Material.PAINT)
        sketch.disc(x, y + 0.2 + 0.37 * number, z, 0.15, 0.15, LIGHT, shown, material)


def traffic_light(sketch: Sketch, dice: Dice, style: Style, x: float, z: float, towards: float) -> None:
    """Adds a traffic light at the kerb, sometimes with a second one on an arm above the road."""
    if dice.chance(0.45):
        reach = dice(2.5, 4.0) * towards
        colour = _shaft(sketch, dice, style, x, z, 5.6, 0.13)
        sketch.upright(min(x, x + reach), max(x, x + reach), 5.36, 5.6, z, POLE, colour)
        _light_box(sketch, dice, style, x + reach, 4.5, z)
    else:
        _shaft(sketch, dice, style, x, z, 3.2, 0.12)
    _light_box(sketch, dice, style, x, 2.3, z)


def traffic_sign(sketch: Sketch, dice: Dice, style: Style, x: float, z: float) -> None:
    """Adds a sign on its post: round, triangular, square, or a wide one for directions."""
    tall = dice(2.2, 3.0)
    _shaft(sketch, dice, style, x, z, tall, 0.1)
    board, rim = dice.pick(style.sign_boards), (232.0, 232.0, 226.0)
    shape = dice.pick(("round", "round", "triangle", "square", "wide"))
    if shape == "round":
        sketch.disc(x, tall, z, 0.46, 0.46, SIGN, board)
        sketch.disc(x, tall, z, 0.3, 0.3, SIGN, mixed(board, rim, 0.85))
        sketch.upright(x - 0.16, x + 0.16, tall - 0.08, tall + 0.1, z, SIGN, (34, 34, 36))
    elif shape == "triangle":
        for size, colour in ((0.58, board), (0.34, rim)):
            corners = ((x - size, tall - size * 0.6, z), (x, tall + size, z), (x + size, tall - size * 0.6, z))
            sketch.polygon(corners, SIGN, colour)
    else:
        wide, high = (0.42, 0.42) if shape == "square" else (1.1, 0.5)
        sketch.upright(x - wide, x + wide, tall - high, tall + high, z, SIGN, rim)
        sketch.upright(x - wide + 0.07, x + wide - 0.07, tall - high + 0.07, tall + high - 0.07, z, SIGN, board)
        sketch.upright(x - wide * 0.6, x + wide * 0.5, tall - 0.06, tall + 0.1, z, SIGN, rim)
