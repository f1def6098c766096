"""Labels of an image of any size: at once, or window by window where it is large."""

import math
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfda.data.transforms import resize_image
from sfda.drawing import Array
from sfda.methods import Method
from sfda.networks.finite import refuse_nan

LARGEST = 2048 * 2048
"""Pixels that are predicted at once: twice an image of Cityscapes, for which people size their machines."""
WINDOW, OVERLAP = 1024, 256
"""Side of the windows and what neighbours share at least, in pixels."""

Labels = tuple[npt.NDArray[np.float32], Array]


def label_image(method: Method, image: Array, size: tuple[int, int] | None, name: str) -> Labels:
    """Confidence (H, W) and train ids (H, W) of an image (H, W, 3), both at its own size.

    The image is brought to `size` before the network. Where there is none and the image has more than `LARGEST`
    pixels, windows that overlap are predicted, and their probabilities blended. Where there is one, such an image gets
    the labels of `LARGEST` pixels, enlarged: more than that the network has not seen of it.

    Raises:
        UserError: the network gives NaN.
    """
    if size is None and image.shape[0] * image.shape[1] > LARGEST:
        bands = list(_bands(method, image, name))
        return np.concatenate([band[0] for band in bands]), np.concatenate([band[1] for band in bands])
    height, width = image.shape[:2]
    factor = min(1.0, math.sqrt(LARGEST / (height * width)))
    output = (max(1, round(factor * height)), max(1, round(factor * width)))
    confidence, classes = _top(_probabilities(method, resize_image(image, size), output, name))
    if factor < 1:
        confidence = cv2.resize(confidence, (width, height), interpolation=cv2.INTER_LINEAR)
        classes = cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(confidence, dtype=np.float32), np.asarray(classes, dtype=np.uint8)


def window_starts(length: int) -> list[int]:
    """Where windows of `WINDOW` pixels begin along a line of so many: spread evenly, from end to end."""
    if length <= WINDOW:
        return [0]
    count = math.ceil((length - OVERLAP) / (WINDOW - OVERLAP))
    return [round(index * (length - WINDOW) / (count - 1)) for index in range(count)]


def window_shares(length: int) -> Tensor:
    """How much each window counts at every pixel of a line: (windows, length), columns of sum 1.

    It falls from a window's middle to its ends, where a network sees the least around a pixel.
    """
    starts = torch.tensor(window_starts(length), dtype=torch.float64)[:, None]
    pixel = torch.arange(length, dtype=torch.float64)
    from_ends = torch.minimum(pixel - starts + 1, starts + min(WINDOW, length) - pixel).clamp(min=0)
    return (from_ends / from_ends.sum(0)).float()


def _bands(method: Method, image: Array, name: str) -> Iterator[Labels]:
    """Labels from top to bottom; no more than one row of windows is held, as probabilities."""
    height, width = image.shape[:2]
    tops, lefts = window_starts(height), window_starts(width)
    down, across = window_shares(height).to(method.device), window_shares(width).to(method.device)
    waiting: Tensor | None = None
    for row, top in enumerate(tops):
        bottom = min(top + WINDOW, height)
        band: Tensor | None = None
        for column, left in enumerate(lefts):
            right = min(left + WINDOW, width)
            window = np.ascontiguousarray(image[top:bottom, left:right])
            probabilities = _probabilities(method, window, (bottom - top, right - left), name)[0]
            if band is None:
                band = probabilities.new_zeros(len(probabilities), bottom - top, width)
            share = down[row, top:bottom, None] * across[column, left:right]
            band[..., left:right] += probabilities * share
        assert band is not None
        if waiting is not None:
            band[:, : waiting.shape[1]] += waiting
        done = (tops[row + 1] if row + 1 < len(tops) else height) - top
        waiting = band[:, done:].clone()
        yield _top(band[None, :, :done])


def _probabilities(method: Method, image: Array, size: tuple[int, int], name: str) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(method.device).float() / 255
    probabilities = method.predict_probabilities(pixels, size)
    refuse_nan(probabilities, [name], "check the checkpoint of the run")
    return probabilities


def _top(probabilities: Tensor) -> Labels:
    confidence, prediction = probabilities[0].max(dim=0)
    return confidence.cpu().numpy(), prediction.cpu().numpy().astype(np.uint8)
