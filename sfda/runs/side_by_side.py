"""One picture of a comparison: the same images as every experiment labels them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfda.data.label_spaces import load_class_set
from sfda.drawing import Array, class_legend
from sfda.files import write_figure
from sfda.runs.image_records import read_records, rgb

MOST = 5
"""Experiments that are drawn at most, the first ones of the compare file."""
IMAGES = 4
"""Images that are drawn."""
NAME = "side_by_side.png"


def draw_side_by_side(rows: Sequence[Mapping[str, object]], out: Path) -> Path | None:
    """Draw image, truth and the predictions of the first experiments, those of the first seed.

    Args:
        rows: Rows of ``results.json``; the pictures of `sfda.runs.image_records` are read.
        out: Folder of the picture.

    Returns:
        The picture; None where no run left pictures.
    """
    found = [(row, read_records(Path(str(row["config"])).parent)) for row in rows if row["seed"] == rows[0]["seed"]]
    drawn = [(row, records.pictures) for row, records in found[:MOST] if records is not None]
    if not drawn:
        return None
    first = drawn[0][1]
    names = [name for name in first if all(name in pictures for _, pictures in drawn)][:IMAGES]
    columns = [("image", "image", first)]
    columns += [("truth", "truth", first)] if all("truth" in first[name] for name in names) else []
    columns += [(_title(row), "prediction", pictures) for row, pictures in drawn]
    shown = [(title, [rgb(pictures[name][kind]) for name in names]) for title, kind, pictures in columns]
    _draw(shown, rows, out)
    return out / NAME


def _title(row: Mapping[str, object]) -> str:
    scores = [
        f"{name} {100 * value:.1f} %"
        for name, key in (("mIoU", "target_miou"), ("ECE", "target_ece"))
        if isinstance(value := row.get(key), float)
    ]
    return "\n".join([str(row["experiment"]), ", ".join(scores)])


def _draw(columns: list[tuple[str, list[Array]]], rows: Sequence[Mapping[str, object]], out: Path) -> None:
    from matplotlib.figure import Figure

    lines = len(columns[0][1])
    height, width = columns[0][1][0].shape[:2]
    figure = Figure(figsize=(3 * len(columns), 3 * lines * height / width + 1.4), layout="constrained")
    axes = figure.subplots(lines, len(columns), squeeze=False)
    for place, (title, pictures) in enumerate(columns):
        axes[0, place].set_title(title, fontsize=10)
        for axis, picture in zip(axes[:, place], pictures, strict=False):
            axis.imshow(picture)
    for axis in axes.flat:
        axis.set_axis_off()
    class_legend(figure, load_class_set(str(rows[0]["class_set"])))
    write_figure(out / NAME, figure, dpi=100)
