"""What sets the three domains apart: palette, light, camera and what is found in their streets.

A preset is fixed for good once results were published with it: a change of any number below is a new preset.
"""

from dataclasses import dataclass
from typing import Any

from sfda.town.draw import Colour

Range = tuple[float, float]
Palette = tuple[Colour, ...]


@dataclass(frozen=True)
class Style:
    """One domain. Ranges are drawn from per scene; lengths in metres, colours RGB 0-255."""

    # Camera, see `draw.Camera`
    camera_height: Range
    focal: Range
    horizon: Range
    bonnet: float  # probability that the own car's bonnet is seen
    # Layout
    road: Range  # half the width of the road
    sidewalk: Range
    storeys: Range
    sides: dict[str, float]  # what stands beside the street: weights
    traffic: dict[str, float]  # what drives: weights
    terrain: float  # probability of a verge of grass; 0: no terrain at all
    rails: float  # probability of tram rails in the road
    density: float  # probability that a place in a lane is taken
    parked: float  # the same, of places at the kerb
    people: float  # mean numbers a scene
    two_wheelers: float  # beside the lanes, parked or ridden
    poles: float
    lights: float
    signs: float
    trees: float
    # Palette
    sky: tuple[Colour, Colour]  # at the top and at the horizon
    clouds: float  # 0: clear, 1: overcast
    cloud: Colour
    asphalt: Palette
    paving: Palette
    marking: Colour
    centre_marking: Colour
    grass: Palette
    foliage: Palette
    facades: Palette
    glass: Colour
    roofs: Palette
    walls: Palette
    fences: Palette
    metal: Palette
    clothes: Palette
    skin: Palette
    cars: Palette
    trucks: Palette
    buses: Palette
    trains: Palette
    sign_boards: Palette
    light_box: Colour
    # Light and sensor
    sun: float  # difference between lit and unlit faces
    shadow: float  # darkness of cast shadows
    haze: float  # share of light lost to haze a metre
    haze_colour: Colour
    texture: float
    grain: float  # mix of fine (0) and coarse (1) texture
    exposure: Range
    contrast: float
    saturation: float
    tint: Colour  # factors x 100 of the three channels
    noise: float  # standard deviation of the sensor's noise in grey levels
    blur: float  # standard deviation in thousandths of the image height


# One row per field of `Style`: its values in gta5, synthia and cityscapes.
_STREETS_V1: dict[str, tuple[Any, Any, Any]] = {
    "camera_height": ((1.35, 1.9), (1.5, 3.0), (1.15, 1.35)),
    "focal": ((0.95, 1.1), (0.95, 1.15), (1.15, 1.3)),
    "horizon": ((0.42, 0.5), (0.36, 0.48), (0.38, 0.44)),
    "bonnet": (0.1, 0.0, 1.0),
    "road": ((5.0, 7.5), (5.5, 8.5), (4.0, 6.0)),
    "sidewalk": ((2.2, 4.0), (3.0, 5.0), (1.8, 3.5)),
    "storeys": ((2, 9), (3, 11), (3, 6)),
    "sides": (
        {"building": 6.0, "wall": 1.7, "fence": 1.7, "park": 1.6, "crossing": 1.0},
        {"building": 6.5, "wall": 1.5, "fence": 1.6, "park": 0.9, "crossing": 0.8},
        {"building": 6.0, "wall": 1.2, "fence": 1.3, "park": 2.0, "crossing": 0.9},
    ),
    "traffic": (
        {"car": 6.0, "truck": 1.0, "bus": 0.9, "train": 0.9, "motorcycle": 1.4, "bicycle": 1.4},
        {"car": 6.0, "bus": 1.4, "motorcycle": 1.4, "bicycle": 1.4},
        {"car": 6.5, "truck": 0.7, "bus": 0.7, "train": 0.8, "motorcycle": 1.0, "bicycle": 2.2},
    ),
    "terrain": (0.35, 0.0, 0.4),
    "rails": (0.15, 0.0, 0.25),
    "density": (0.45, 0.4, 0.4),
    "parked": (0.35, 0.25, 0.6),
    "people": (4.0, 7.0, 6.0),
    "two_wheelers": (1.8, 1.8, 2.2),
    "poles": (4.0, 4.5, 4.5),
    "lights": (1.6, 1.8, 1.5),
    "signs": (1.6, 1.8, 2.2),
    "trees": (4.0, 3.5, 5.0),
    "sky": (((74, 128, 204), (186, 208, 226)), ((112, 152, 216), (216, 226, 236)), ((158, 184, 215), (221, 231, 234))),
    "clouds": (0.35, 0.55, 0.8),
    "cloud": ((246, 244, 238), (236, 238, 246), (248, 249, 243)),
    "asphalt": (
        ((98, 95, 92), (112, 108, 103), (84, 83, 84)),
        ((90, 89, 93), (80, 79, 84), (100, 98, 100)),
        ((102, 102, 100), (100, 100, 99), (101, 100, 100)),
    ),
    "paving": (
        ((172, 163, 148), (160, 154, 145), (184, 172, 152)),
        ((148, 122, 112), (140, 136, 148), (168, 148, 130)),
        ((143, 138, 131), (143, 137, 132), (142, 138, 130)),
    ),
    "marking": ((226, 224, 214), (240, 240, 244), (204, 206, 201)),
    "centre_marking": ((214, 176, 62), (240, 240, 244), (204, 206, 201)),
    "grass": (
        ((132, 138, 66), (112, 130, 60), (158, 142, 88)),
        ((84, 150, 60),),
        ((112, 125, 68), (96, 117, 65), (129, 128, 82)),
    ),
    "foliage": (
        ((70, 106, 44), (88, 116, 50), (58, 92, 46), (104, 118, 60)),
        ((46, 126, 44), (70, 146, 52), (38, 104, 52), (112, 140, 48)),
        ((59, 88, 46), (75, 99, 54), (50, 75, 45), (88, 102, 60)),
    ),
    "facades": (
        ((206, 182, 148), (190, 150, 118), (222, 208, 184), (168, 120, 96), (180, 178, 172), (146, 140, 132)),
        ((176, 104, 84), (150, 134, 158), (196, 172, 124), (128, 136, 148), (204, 198, 204), (130, 102, 96)),
        ((172, 157, 134), (153, 133, 116), (188, 179, 162), (150, 115, 96), (139, 138, 136), (153, 145, 125)),
    ),
    "glass": ((66, 92, 112), (58, 76, 110), (64, 79, 88)),
    "roofs": (((132, 98, 82), (110, 104, 98)), ((150, 66, 54), (84, 84, 96)), ((120, 86, 72), (94, 92, 91))),
    "walls": (
        ((176, 162, 140), (150, 142, 134), (190, 148, 118)),
        ((150, 96, 80), (136, 136, 146)),
        ((144, 136, 123), (122, 119, 115)),
    ),
    "fences": (
        ((120, 116, 110), (92, 88, 84), (150, 130, 104)),
        ((60, 66, 84), (128, 104, 76)),
        ((96, 98, 93), (96, 93, 89)),
    ),
    "metal": (
        ((112, 110, 106), (86, 86, 84), (132, 124, 112)),
        ((76, 80, 92), (104, 106, 116)),
        ((107, 109, 107), (109, 111, 110), (100, 100, 94)),
    ),
    "clothes": (
        ((176, 60, 50), (56, 76, 130), (220, 216, 206), (48, 48, 52), (196, 150, 70), (86, 120, 86)),
        ((220, 40, 60), (40, 60, 180), (40, 160, 90), (230, 190, 50), (150, 60, 170), (230, 230, 236)),
        ((99, 55, 56), (69, 76, 98), (124, 130, 138), (86, 55, 54), (162, 143, 107), (58, 72, 61)),
    ),
    "skin": (
        ((204, 154, 122), (150, 104, 78), (104, 72, 56)),
        ((222, 170, 140), (140, 96, 74)),
        ((193, 150, 126), (149, 109, 88)),
    ),
    "cars": (
        ((186, 34, 30), (226, 224, 218), (36, 38, 42), (42, 80, 150), (170, 172, 174), (214, 160, 46)),
        ((220, 30, 36), (30, 60, 190), (236, 236, 240), (40, 150, 80), (30, 30, 34), (236, 200, 40)),
        ((98, 39, 40), (174, 176, 175), (120, 123, 125), (53, 74, 112), (126, 128, 130), (152, 92, 44)),
    ),
    "trucks": (
        ((216, 212, 200), (190, 70, 44), (150, 140, 124)),
        ((236, 236, 230),),
        ((188, 188, 181), (156, 98, 70), (132, 130, 120)),
    ),
    "buses": (
        ((226, 178, 60), (70, 104, 142)),
        ((230, 60, 40), (60, 90, 200), (236, 236, 230)),
        ((176, 148, 72), (76, 99, 119)),
    ),
    "trains": (((200, 196, 186), (176, 52, 44)), ((200, 200, 200),), ((190, 174, 116), (166, 119, 115))),
    "sign_boards": (
        ((190, 36, 34), (40, 108, 72), (226, 222, 210), (222, 176, 40)),
        ((220, 30, 40), (30, 80, 210), (240, 240, 236)),
        ((166, 41, 40), (44, 89, 107), (204, 204, 197)),
    ),
    "light_box": ((52, 50, 34), (32, 34, 34), (45, 46, 40)),
    "sun": (0.26, 0.34, 0.17),
    "shadow": (0.45, 0.5, 0.34),
    "haze": (0.0022, 0.0015, 0.0038),
    "haze_colour": ((206, 212, 214), (220, 224, 236), (205, 212, 211)),
    "texture": (0.7, 0.6, 0.8),
    "grain": (0.4, 0.55, 0.3),
    "exposure": ((0.78, 1.18), (0.8, 1.2), (0.8, 1.08)),
    "contrast": (1.1, 1.06, 0.96),
    "saturation": (1.15, 1.08, 0.93),
    "tint": ((104, 101, 94), (98, 99, 102), (98, 101, 97)),
    "noise": (1.5, 0.7, 5.0),
    "blur": (3.0, 2.0, 5.0),
}
PRESETS = {
    "streets-v1": {
        domain: Style(**{field: values[number] for field, values in _STREETS_V1.items()})
        for number, domain in enumerate(("gta5", "synthia", "cityscapes"))
    }
}
