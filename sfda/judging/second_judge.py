"""A frozen model beside the source model, which nothing trains on."""

import copy
from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor

from sfda.metrics.functional import score_sums
from sfda.metrics.label_free import label_free_scores
from sfda.metrics.view_agreement import Predict
from sfda.networks.batch_norm import (
    BatchStatistics,
    Statistics,
    keep_lone_values,
    mix_statistics,
    read_statistics,
)
from sfda.networks.resampling import scale_images
from sfda.networks.segmenter import Segmenter

SCALES = (1.0, 0.75, 1.5)
"""Factors on the size of the images that are tried."""
ALPHAS = (0.0, 0.5)
"""Shares of the images' BatchNorm statistics that are tried."""
GATHERED = 16
"""Images that it has the statistics of."""
SCORED = 8
"""Of them, those that it is chosen on."""
BATCH = 4
"""Images whose statistics are gathered together: those of single ones differ from a whole set's."""


@torch.no_grad()
def second_judge(
    source: Segmenter, batches: Callable[[], Iterable[Tensor]], over_scored: Callable[[Tensor], Tensor]
) -> Predict:
    """The source network as well as it can be used without training: of a few sizes and statistics the best by InfoMax.

    It predicts with the mean over an image and its mirror image, and is chosen by that mean, whose InfoMax is the
    smaller the less the two agree. What is compared with it has to be better than this to be misjudged by it.

    Args:
        source: The source model's network, which stays as it is.
        batches: Gives images (B, 3, H, W), the same ones at each call, best `BATCH` at a time and `GATHERED` in all.
        over_scored: Probabilities over the network's classes (B, C, H, W) → over the scored ones.

    Returns:
        Images and a size → probabilities over the scored classes.
    """
    network = copy.deepcopy(source).eval()
    keep_lone_values(network)
    known = read_statistics(network)
    best, chosen = -torch.inf, (1.0, 0.0, known)
    for scale in SCALES:
        target = _statistics(network, known, batches(), scale)
        for alpha in ALPHAS if known else ALPHAS[:1]:
            mix_statistics(network, known, target, alpha)
            infomax = _infomax(_mirrored(network, scale, over_scored), batches())
            if infomax > best:
                best, chosen = infomax, (scale, alpha, target)
    scale, alpha, target = chosen
    mix_statistics(network, known, target, alpha)
    return _mirrored(network, scale, over_scored)


def _statistics(network: Segmenter, known: Statistics, batches: Iterable[Tensor], scale: float) -> Statistics:
    """Of the images at a size, as the source's own statistics give them."""
    if not known:
        return known
    mix_statistics(network, known, known, 0)
    with BatchStatistics(network) as gathered:
        for images in batches:
            network(scale_images(images, scale))
    return gathered.mean_and_variance()


def _infomax(predict: Predict, batches: Iterable[Tensor]) -> float:
    """Over the first images; without torchmetrics' sums over processes, since one alone may ask for it."""
    images = (image for images in batches for image in torch.split(images, 1))
    rows = [score_sums(predict(image, (image.shape[-2], image.shape[-1]))) for image in islice(images, SCORED)]
    sums = {name: torch.stack([row[name] for row in rows]).sum(0) for name in (rows[0] if rows else ())}
    return float(label_free_scores(sums)["infomax"]) if sums else 0.0


def _mirrored(network: Segmenter, scale: float, over_scored: Callable[[Tensor], Tensor]) -> Predict:
    def single(images: Tensor, size: tuple[int, int]) -> Tensor:
        return network.resize(network(images).float(), size).softmax(dim=1)

    def predict(images: Tensor, size: tuple[int, int]) -> Tensor:
        seen = scale_images(images, scale)
        return over_scored((single(seen, size) + single(seen.flip(-1), size).flip(-1)) / 2)

    return predict
