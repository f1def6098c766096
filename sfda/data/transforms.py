"""Random views of a training image: one geometry, a weak and a strong photometry."""

import os
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sfda.data.label_spaces import IGNORE

# albumentations asks the network for a newer version of itself when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

TRIES = 10  # crops that are drawn at most for one with enough classes
Array = npt.NDArray[np.uint8]


def resize_image(image: Array, size: tuple[int, int] | None) -> Array:
    """Bring an image (H, W, 3) to `size` = (height, width): area averaging downwards, bilinear upwards."""
    if size is None or image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0]
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def resize_label(label: Array, size: tuple[int, int] | None) -> Array:
    """Bring a label map (H, W) to `size` = (height, width) by nearest neighbour."""
    if size is None or label.shape == size:
        return label
    return np.asarray(cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


@dataclass
class View:
    """One random view of an image."""

    image: Array  # (h, w, 3), geometry applied
    label: Array | None  # (h, w) train ids, 255 where padded; None for an image without a label
    valid: npt.NDArray[np.bool_]  # (h, w), False where the crop had to be padded
    strong: Array | None  # (h, w, 3), the same crop with strong photometric augmentation, where asked for


class RandomViews:
    """Random rescale, crop and flip, and a strong photometric view of the same crop.

    The same seed gives the same view, in whatever process it is drawn.

    Args:
        crop: (height, width) of the view; None keeps the whole image and only flips it.
        scale: Smallest and largest random rescale factor.
        strong: Whether to make the strong view.
        wanted_classes: A crop is drawn again, up to `TRIES` times in all, until its label has more than this many
            classes; None takes the first. The last one is taken as it is.
    """

    def __init__(
        self, crop: tuple[int, int] | None, scale: tuple[float, float], strong: bool, wanted_classes: int | None = None
    ) -> None:
        self.wanted_classes = None if crop is None else wanted_classes
        steps: list[A.BasicTransform] = []
        if crop is not None:
            steps += [
                A.RandomScale((scale[0] - 1, scale[1] - 1), p=1.0),
                A.RandomCrop(
                    *crop, pad_if_needed=True, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=IGNORE
                ),  # `PadIfNeeded` copies the whole image where nothing is needed
            ]
        self.geometry = A.Compose([*steps, A.HorizontalFlip(p=0.5)], additional_targets={"padding": "mask"})
        jitter = A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)
        photometry = A.Compose([jitter, A.ToGray(p=0.1), A.GaussianBlur(blur_limit=(3, 7), p=0.5)])
        self.photometry = photometry if strong else None

    def __call__(self, image: Array, label: Array | None, seed: int) -> View:
        """The view of an image (H, W, 3) and its label (H, W) that belongs to `seed`."""
        self.geometry.set_random_seed(seed)
        padding = np.zeros(image.shape[:2], dtype=np.uint8)
        maps = {"image": image, "padding": padding}
        drawn = self._draw(maps if label is None else {**maps, "mask": label})
        strong = None
        if self.photometry is not None:
            self.photometry.set_random_seed(seed)
            strong = self.photometry(image=drawn["image"])["image"]
        return View(drawn["image"], drawn.get("mask"), drawn["padding"] == 0, strong)

    def _draw(self, maps: dict[str, Array]) -> dict[str, Any]:
        """One geometry of image, padding and, where there is one, label."""
        drawn: dict[str, Any] = self.geometry(**maps)
        wanted = self.wanted_classes
        if wanted is None or "mask" not in maps or _number_of_classes(maps["mask"]) <= wanted:
            return drawn
        for _ in range(TRIES - 1):
            if _number_of_classes(drawn["mask"]) > wanted:
                break
            drawn = self.geometry(**maps)  # goes on with the same seed
        return drawn


def _number_of_classes(label: Array) -> int:
    return int((np.bincount(label.ravel(), minlength=256)[:IGNORE] > 0).sum())
