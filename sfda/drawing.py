"""What pictures of label maps share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sfda.data.label_spaces import ClassSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.uint8]
INCHES_PER_NAME = 1.6
"""Width of a class and its colour in a legend."""


def colour(labels: npt.NDArray[np.integer[Any]], classes: ClassSet) -> Array:
    """Train ids (H, W) as RGB colours (H, W, 3); ignored pixels are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(classes)] = classes.colours
    return np.asarray(table[labels], dtype=np.uint8)


def class_legend(figure: Figure, classes: ClassSet) -> None:
    """Names and colours of all classes below a figure."""
    from matplotlib.patches import Patch

    colours = np.divide(classes.colours, 255)
    handles = [Patch(color=colour, label=name) for name, colour in zip(classes.names, colours, strict=True)]
    columns = max(1, int(figure.get_figwidth() / INCHES_PER_NAME))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
