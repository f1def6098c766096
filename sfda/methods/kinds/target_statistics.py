"""BatchNorm statistics of the target, for methods that estimate them in the middle of a fit."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfda.errors import UserError
from sfda.methods.kinds.method import Method
from sfda.networks.batch_norm import BatchStatistics, Statistics, batch_norm_layers
from sfda.networks.finite import refusing_nan

IMAGES = 256
"""Images that statistics are estimated on, all ranks together; 16 are enough, more make the estimate repeatable."""
BATCH = 8
"""Images per batch and process: every layer sees inputs that batches of this size have normalised."""


@torch.no_grad()
def target_statistics(method: Method, module: nn.Module, forward: Callable[[Tensor], object]) -> Statistics:
    """Statistics of every BN layer of `module` on target training images, pooled over batches and ranks.

    Gathered as in `sfda.methods.ada_bn.AdaBN`, with the layers in train mode; to be called by all ranks. The images
    are the same at every call of a run.

    Args:
        method: The method at work, on its device; it reads target images.
        module: Its BN layers are looked at; modes and buffers are as before afterwards. Without any, nothing is run.
        forward: Runs images (B, 3, H, W) through all of `module`.

    Raises:
        UserError: there are too few target images for a batch of two on every process, or the network gives NaN.
    """
    if not batch_norm_layers(module):
        return {}
    images, processes = len(method.datamodule.training_sets["target"]), method.trainer.world_size
    if images < 2 * processes:
        raise UserError(
            f"BatchNorm statistics of the target need batches of two images or more: {images} training images are too "
            f"few for {processes} processes"
        )
    with BatchStatistics(module) as gathered:
        for batch in method.datamodule.plain_batches(
            "target", method.device, title="BatchNorm statistics", batch_size=BATCH, shuffled=IMAGES
        ):
            if len(batch["name"]) > 1:  # unreadable files may leave one image, which has no variance
                with refusing_nan(method.network, batch["name"], method.advice_against_nan):
                    forward(batch["image"])
    return gathered.reduce().mean_and_variance()
