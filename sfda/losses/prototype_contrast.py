"""Labels and losses from class prototypes in feature space: the prototype contrast of IAPC.

Implemented from the published description (arXiv 2306.01598, section III-B). Prototypes are means of the memory
network's features, similarities are raw cosines between them and the features of the network that trains. A class
without a pixel is absent: it has no prototype and wins nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.losses.cross_entropy import cross_entropy
from sfda.metrics.functional import at_least_float32
from sfda.ranks import ALONE, Ranks

_SMALLEST_NORM = 1e-6  # of a feature vector: the gradient of a direction grows as 1/norm


def resize_nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps (B, H, W), integers up to 255, brought to `size` (h, w) by nearest neighbour."""
    if labels.shape[-2:] == size:
        return labels
    return F.interpolate(labels.unsqueeze(1).float(), size, mode="nearest").squeeze(1).to(labels.dtype)


def feature_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum of the features of every class in every image, and how many there are; those of images and ranks add up.

    From features (B, D, h, w), raised to float32, and labels (B, h, w), 255 = takes part in nothing, to sums (B, C, D)
    and counts (B, C), without a gradient.
    """
    features = at_least_float32(features.detach())
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1, 1)
    member = (labels.unsqueeze(1) == classes).to(features.dtype).flatten(2)
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bcn,bdn->bcd", member, features.flatten(2)), member.sum(2)


def update_prototypes(prototypes: Tensor, sums: Tensor, counts: Tensor, momentum: float) -> Tensor:
    """Moving averages, over batches, of the mean feature of every class; a class's first mean is taken as it is.

    Prototypes are (C, D), zeros for a class that has never been seen; a class without a pixel in this batch, by `sums`
    (C, D) and `counts` (C,) of `feature_sums`, keeps its own. `momentum` in [0, 1] is the share of the old ones.
    """
    means = sums / counts.clamp(min=1).unsqueeze(1)
    averaged = torch.where(prototypes.any(1, keepdim=True), means.lerp(prototypes, momentum), means)
    return torch.where(counts.unsqueeze(1) > 0, averaged, prototypes)


def cosine_similarities(features: Tensor, sums: Tensor) -> Tensor:
    """Cosine between every feature and the prototype of every class.

    Args:
        features: (B, D, h, w); half precision is raised to float32.
        sums: Prototypes (B, C, D), or (1, C, D) for all images alike; only their direction counts, so that sums of
            features do as well as means. A class of zeros has similarity 0.

    Returns:
        (B, C, h, w) in [-1, 1].
    """
    prototypes = F.normalize(sums, dim=2, eps=_SMALLEST_NORM)
    directions = F.normalize(at_least_float32(features), dim=1, eps=_SMALLEST_NORM)
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bcd,bdhw->bchw", prototypes.expand(len(features), -1, -1), directions)


def nearest_prototype(similarities: Tensor, present: Tensor) -> Tensor:
    """The present class whose prototype is most similar: the label ŷ_proto, (B, h, w) int64.

    Of `cosine_similarities` (B, C, h, w); `present` (B, C) bool says which classes have a prototype. 255 in an image
    without any.
    """
    nearest = mask_absent(similarities.detach(), present).argmax(1)
    return nearest.masked_fill(~present.any(1).view(-1, 1, 1), IGNORE)


def prototype_symmetric_cross_entropy(
    logits: Tensor, prototype_labels: Tensor, similarities: Tensor, present: Tensor, valid: Tensor, ranks: Ranks = ALONE
) -> Tensor:
    """L_PS: logits learn ŷ_proto, and similarities the class ŷ that the logits predict.

    Each term is a mean over the pixels that it can be had for: an absent ŷ is left out of the second one.

    Args:
        logits: (B, C, H, W).
        prototype_labels: (B, H, W) int64, see `nearest_prototype`; 255 where there is none.
        similarities: (B, C, H, W), cosines at label size, of absent classes too.
        present: (B, C) bool, which classes have a prototype.
        valid: (B, H, W) bool, False = padding.
        ranks: Whose labelled pixels the means are over, see `sfda.losses.mean.mean_over_pixels`.

    Returns:
        Scalar, at least float32; 0 with a gradient where no pixel has a label.
    """
    logits, similarities = at_least_float32(logits), at_least_float32(similarities)
    predicted = logits.detach().argmax(1)
    is_present = present.gather(1, predicted.flatten(1)).view_as(predicted)
    prototype_labels = prototype_labels.masked_fill(~valid, IGNORE)
    predicted = predicted.masked_fill(~(valid & is_present), IGNORE)
    first = cross_entropy(logits, prototype_labels, ranks)
    return first + cross_entropy(mask_absent(similarities, present), predicted, ranks)


def mask_absent(similarities: Tensor, present: Tensor) -> Tensor:
    """Similarities (B, C, h, w) whose absent classes have probability 0 in a softmax; present (B, C) bool.

    The smallest number rather than −inf, of which an image without any class would make NaN.
    """
    absent = ~present.view(*present.shape, 1, 1)
    return similarities.masked_fill(absent, torch.finfo(similarities.dtype).min)
