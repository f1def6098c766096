"""Nearest-prototype prediction in the space of probabilities: one 1x1 convolution, and what it is fitted from.

The prototype of a class is the mean probability vector of the pixels that the network predicts as this class on
target images; a pixel is then given the class of the prototype nearest to its own vector. Implemented from the
published description of "Label Calibration for Semantic Segmentation Under Domain Shift" (arXiv 2307.10842). The
calibrated probabilities and their temperature are an addition of this project.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sfda.errors import UserError
from sfda.metrics.functional import top_label
from sfda.ranks import mean_of_all_ranks

TEMPERATURES = (1e-4, 1e4)
"""Smallest and largest temperature that `fit_temperature` looks at."""

SUM_TOLERANCE = 1e-4
"""How far the entries of a prototype may be from summing to 1; a float32 softmax of 254 classes may be 2e-5 off."""

_BISECTIONS = 30  # the factor of 1e8 between the largest and the smallest temperature shrinks to 1 + 2e-8
_CHUNK = 1 << 16  # pixels


class LabelCalibrationHead(nn.Module):
    """Calibrated probabilities softmax(−‖p − q_c‖² / τ) from probabilities p, as one 1x1 convolution with bias.

    ‖p‖² is the same for all classes, so the scores are (2 q_c·p − ‖q_c‖²) / τ. Starts with one-hot prototypes, which
    predict the same classes as p itself, and with the temperature at which a confidence of 0.8, the rest being spread
    evenly, stays 0.8. Goes after any segmenter: ``nn.Sequential(segmenter, nn.Softmax(1), head)``.

    Args:
        num_classes: Number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_classes, num_classes, kernel_size=1).requires_grad_(False)
        self.reset()

    def reset(self) -> None:
        """Back to one-hot prototypes."""
        others = len(self.conv.weight) - 1
        confidence = 0.8
        rest = (1 - confidence) / others
        self.set_prototypes(torch.eye(others + 1), 2 * (confidence - rest) / math.log(confidence / rest))

    @torch.no_grad()
    def set_prototypes(self, prototypes: Tensor, temperature: float) -> None:
        """Predict with these from now on.

        Args:
            prototypes: (C, C), row c the prototype of class c: probabilities that sum to 1.
            temperature: τ > 0, in squared distance.

        Raises:
            UserError: a prototype does not sum to 1.
        """
        prototypes = prototypes.double()
        whole = (prototypes.sum(1) - 1).abs() <= SUM_TOLERANCE
        if not whole.all():
            raise UserError(
                f"the prototypes of classes {(~whole).nonzero().flatten().tolist()} (numbers from 0) do not sum to 1: "
                "the network gives probabilities that are NaN; check its source_checkpoint"
            )
        assert self.conv.bias is not None
        self.conv.weight.copy_(2 * prototypes[..., None, None] / temperature)
        self.conv.bias.copy_(-prototypes.square().sum(1) / temperature)

    @property
    def temperature(self) -> float:
        """τ, read back from the convolution: a row of its weights sums to 2/τ, since a prototype sums to 1."""
        return 2 / self.conv.weight.double().sum(1).mean().item()

    @property
    def prototypes(self) -> Tensor:
        """(C, C) float64, read back from the convolution."""
        return self.conv.weight.double().flatten(1) * self.temperature / 2

    def forward(self, probabilities: Tensor) -> Tensor:
        """Calibrated probabilities: (B, C, H, W) → (B, C, H, W), float32 under autocast too."""
        device = probabilities.device.type
        # Half precision has three digits, and the scores are divided by a small temperature. Where there is no
        # autocast nothing is said about it, so that an exported head is a convolution and a softmax alone.
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            scores: Tensor = self.conv(probabilities.to(self.conv.weight.dtype))
            return scores.softmax(dim=1)


def prototype_sums(probabilities: Tensor, gamma: float = 1.0) -> Tensor:
    """What prototypes are made of; sums of batches and of processes add up.

    Args:
        probabilities: (B, C, H, W).
        gamma: γ, the power of the confidence that a pixel is weighted by; 0 weights all alike.

    Returns:
        (C, C + 2) float64; row c, over the pixels predicted as class c: Σ conf^γ·p (C numbers), Σ conf^γ, and the
        number of pixels.
    """
    num_classes = probabilities.shape[1]
    sums = probabilities.new_zeros(num_classes + 2, num_classes, dtype=torch.float64)
    for pixels in (piece for image in probabilities.flatten(2) for piece in image.split(_CHUNK, dim=1)):
        confidence, predicted = (top[0] for top in top_label(pixels[None]))
        weight = confidence.double().pow(gamma)
        terms = torch.cat([weight * pixels, weight[None], torch.ones_like(weight[None])])
        sums.index_add_(1, predicted.long(), terms)
    return sums.T


def present_classes(sums: Tensor) -> Tensor:
    """Which classes any pixel was predicted as, from `prototype_sums`: (C, C + 2) → (C,) bool."""
    # Forgotten exponentially, a weight shrinks below what a division can be made with. One that is NaN is no absence:
    # it has to reach the prototype, where it is refused.
    return ~(sums[:, -2] <= torch.finfo(sums.dtype).tiny)


def prototypes_from_sums(sums: Tensor) -> Tensor:
    """Prototypes q_c = Σ conf^γ·p / Σ conf^γ, (C, C); a class that no pixel was predicted as gets its one-hot vector.

    Args:
        sums: (C, C + 2), see `prototype_sums`.
    """
    one_hot = torch.eye(len(sums), dtype=sums.dtype, device=sums.device)
    return torch.where(present_classes(sums)[:, None], sums[:, :-2] / sums[:, -2:-1], one_hot)


def fit_temperature(sample: Tensor, prototypes: Tensor) -> float:
    """The temperature τ at which calibration leaves the mean confidence of a sample as it is, by bisection on log τ.

    All processes call it together, each with its own part of the sample, and get the same bits: every step looks at
    means over all of them. Where no τ keeps the mean, the nearest of `TEMPERATURES` is returned.

    Args:
        sample: (N, C) probability vectors.
        prototypes: (C, C).
    """
    sample, prototypes = sample.double(), prototypes.double()
    distances = prototypes.square().sum(1) - 2 * sample @ prototypes.T
    gaps = distances - distances.amin(1, keepdim=True)
    wanted = mean_of_all_ranks(sample.amax(1))
    low, high = (math.log(temperature) for temperature in TEMPERATURES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        confidence = 1 / torch.exp(gaps * -math.exp(-middle)).sum(1)
        if mean_of_all_ranks(confidence) > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
