"""People on foot and on two wheels."""

from sfda.town.draw import Dice, Material, Sketch, scaled
from sfda.town.styles import Style

PERSON, RIDER = 11, 12


def person(sketch: Sketch, dice: Dice, style: Style, x: float, z: float) -> None:
    """Adds somebody who stands or walks, seen from the front or from behind."""
    size = dice(0.92, 1.08) if dice.chance(0.88) else dice(0.6, 0.75)
    coat, trousers, skin = dice.pick(style.clothes), scaled(dice.pick(style.clothes), 0.7), dice.pick(style.skin)
    stride, turn = dice(0.03, 0.3), dice(-1.0, 1.0)
    sketch.shadow_disc(x, z, 0.38, 0.3)

    def part(corners: tuple[tuple[float, float], ...], colour: tuple[float, float, float]) -> None:
        sketch.polygon([(x + u * size, y * size, z) for u, y in corners], PERSON, colour, Material.CLOTH)

    part(((-0.2, 0.88), (0.0, 0.88), (-stride + 0.02, 0.05), (-stride - 0.16, 0.05)), scaled(trousers, 0.8))
    part(((0.0, 0.88), (0.2, 0.88), (stride + 0.16, 0.05), (stride - 0.02, 0.05)), trousers)
    for foot in (-stride - 0.06, stride + 0.06):
        part(((foot - 0.1, 0.0), (foot - 0.1, 0.09), (foot + 0.12, 0.09), (foot + 0.12, 0.0)), (36, 32, 30))
    for side in (-1, 1):
        sleeve = ((side * 0.2, 1.42), (side * 0.32, 1.36), (side * 0.36, 0.86), (side * 0.26, 0.84))
        part(sleeve, scaled(coat, 0.8))
    part(((-0.26, 1.42), (-0.12, 1.5), (0.12, 1.5), (0.26, 1.42), (0.22, 0.82), (-0.22, 0.82)), coat)
    if dice.chance(0.3):
        part(((turn * 0.3, 1.2), (turn * 0.48, 1.15), (turn * 0.48, 0.8), (turn * 0.3, 0.8)), scaled(trousers, 0.6))
    sketch.disc(x, 1.63 * size, z, 0.13 * size, 0.16 * size, PERSON, skin, Material.CLOTH)
    hair = scaled(dice.pick(((60, 42, 30), (30, 26, 24), (120, 92, 56), (150, 146, 140))), 1.0)
    sketch.disc(x + turn * 0.02, 1.71 * size, z, 0.14 * size, 0.1 * size, PERSON, hair, Material.CLOTH)


def rider(sketch: Sketch, dice: Dice, style: Style, x: float, z: float, seat: float, helmet: bool) -> None:
    """Adds somebody on a two-wheeler whose saddle is `seat` metres high."""
    coat, trousers, skin = dice.pick(style.clothes), scaled(dice.pick(style.clothes), 0.7), dice.pick(style.skin)
    lean = dice(-0.12, 0.12)

    def part(corners: tuple[tuple[float, float], ...], colour: tuple[float, float, float]) -> None:
        sketch.polygon([(x + u, seat + y, z) for u, y in corners], RIDER, colour, Material.CLOTH)

    for side in (-1, 1):
        part(((side * 0.04, 0.08), (side * 0.24, 0.05), (side * 0.3, -0.3), (side * 0.14, -0.3)), trousers)
        part(((side * 0.14, -0.28), (side * 0.3, -0.28), (side * 0.24, -0.68), (side * 0.12, -0.68)),
             scaled(trousers, 0.8))  # fmt: skip
        sleeve = ((side * 0.2 + lean, 0.62), (side * 0.34 + lean, 0.55), (side * 0.4, 0.2), (side * 0.28, 0.2))
        part(sleeve, scaled(coat, 0.8))
    part(((-0.26 + lean, 0.62), (lean, 0.72), (0.26 + lean, 0.62), (0.2, 0.0), (-0.2, 0.0)), coat)
    sketch.disc(x + lean, seat + 0.84, z, 0.13, 0.16, RIDER, skin, Material.CLOTH)
    top = dice.pick(style.cars) if helmet or dice.chance(0.4) else (52.0, 38.0, 30.0)
    drop = 0.06 if helmet else 0.0
    sketch.disc(x + lean, seat + 0.9 - drop, z, 0.16, 0.12 + drop, RIDER, top)
