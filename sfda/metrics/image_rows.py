"""What one image of a target is scored by, and the records that many of them make."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfda.data.label_spaces import ClassSet
from sfda.metrics.functional import score_sums
from sfda.runs.image_records import Pictures, Records, draw_pictures

ImageRow = dict[str, Any]


def image_row(name: str, probabilities: Tensor, label: Tensor | None, pictures: Pictures | None) -> ImageRow:
    """The numbers of an image that `Records` keep.

    Args:
        name: Of the image.
        probabilities: (C, H, W), sums to 1 over C.
        label: (H, W), 255 = takes part in nothing; None where no label is read.
        pictures: See `image_pictures`; None where none are kept.
    """
    found = score_sums(probabilities[None], None if label is None else label[None])
    sums = {key: value.cpu().numpy() for key, value in found.items()}
    confusion = sums.get("confusion")
    return {
        "name": name,
        "confusion": None if confusion is None else confusion.astype(np.uint32),
        "mass": sums["predicted"].astype(np.uint32),
        "entropy": float(sums["entropy"] / sums["pixels"]),
        "pictures": pictures,
    }


def image_pictures(
    image: npt.NDArray[np.uint8], probabilities: Tensor, label: Tensor | None, classes: ClassSet
) -> Pictures:
    """Small pictures of an image (H, W, 3) uint8, of what was predicted for it (C, H, W), and of its label (H, W)."""
    confidence, prediction = probabilities.max(dim=0)
    maps = {"prediction": prediction.byte(), "confidence": (confidence * 255).round().byte()}
    if label is not None:
        maps["truth"] = label.to(torch.uint8)
    return draw_pictures({"image": image, **{kind: each.cpu().numpy() for kind, each in maps.items()}}, classes)


def records_of(rows: Sequence[ImageRow], bins: Tensor | None, classes: ClassSet) -> Records:
    """Records of images, in the order of their names; `bins` (3, M) are the confidence bins of all together."""
    ordered = sorted(rows, key=lambda row: str(row["name"]))
    labelled = all(row["confusion"] is not None for row in ordered)
    return Records(
        classes=dict(zip(classes.names, classes.colours, strict=True)),
        names=[row["name"] for row in ordered],
        confusion=np.stack([row["confusion"] for row in ordered]) if labelled else None,
        mass=np.stack([row["mass"] for row in ordered]),
        entropy=np.array([row["entropy"] for row in ordered]),
        bins=None if bins is None else bins.cpu().numpy(),
        pictures={row["name"]: row["pictures"] for row in ordered if row["pictures"] is not None},
    )
