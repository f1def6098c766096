"""A frozen model beside the source model, which nothing trains on."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from sfda.methods.kinds.method import MULTI_SCALES
from sfda.metrics.view_agreement import Predict
from sfda.networks.batch_norm import (
    BatchStatistics,
    batch_norm_layers,
    keep_lone_values,
    mix_statistics,
    read_statistics,
)
from sfda.networks.resampling import scale_images
from sfda.networks.segmenter import Segmenter

ALPHA = 0.3
"""How much of the images' BatchNorm statistics the second judge has: what gained on every network tried."""
GATHERED = 16
"""Images that it has the statistics of."""
BATCH = 4
"""Images whose statistics are gathered together: those of single ones differ from a whole set's."""


@torch.no_grad()
def second_judge(source: Segmenter, batches: Iterable[Tensor]) -> Predict:
    """The source network with 30 % of some images' BatchNorm statistics, averaged over the image and its mirror image.

    Without BatchNorm layers: averaged over three scales, each with its mirror image.

    Args:
        source: The source model's network, which stays as it is.
        batches: Images (B, 3, H, W), best `BATCH` at a time; not looked at without BatchNorm layers.

    Returns:
        Images and a size → probabilities over the network's classes.
    """
    network = copy.deepcopy(source).eval()
    scales: tuple[float, ...] = MULTI_SCALES
    if batch_norm_layers(network):
        scales = (1.0,)
        keep_lone_values(network)
        with BatchStatistics(network) as gathered:
            for images in batches:
                network(images)
        mix_statistics(network, read_statistics(network), gathered.mean_and_variance(), ALPHA)

    def single(images: Tensor, size: tuple[int, int]) -> Tensor:
        return network.resize(network(images).float(), size).softmax(dim=1)

    def predict(images: Tensor, size: tuple[int, int]) -> Tensor:
        seen = [scale_images(images, scale) for scale in scales]
        views = [view for each in seen for view in (single(each, size), single(each.flip(-1), size).flip(-1))]
        return torch.stack(views).mean(0)

    return predict
