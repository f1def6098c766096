"""Scores of a fixed sample of pixels per image, for what would be too large over all of them."""

import math

import torch
from torch import Tensor

PIXELS = 1024
"""Pixels of an image that are looked at."""
TEMPERATURE = 0.05
"""Of the similarities in `soft_neighbourhood_density` (Saito et al., arXiv 2108.10860, section 3.3)."""


def pixel_sample(probabilities: Tensor, count: int = PIXELS) -> Tensor:
    """Probabilities of pixels drawn once per image size, with replacement: (B, C, H, W) → (B, count, C) float64."""
    flat = probabilities.flatten(2)
    drawn = torch.randint(flat.shape[2], (count,), generator=torch.Generator().manual_seed(0))
    return flat[..., drawn.to(flat.device)].transpose(1, 2).double()


def soft_neighbourhood_density(rows: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean entropy, in nats, of how similar each pixel is to the others: (B, N, C), N at least 2 → (B,).

    Rows are normalised to length 1; the softmax of their products over `temperature` leaves out the pixel itself.
    Higher is better: predictions form dense clusters (SND, Saito et al., arXiv 2108.10860, equations 2 to 4).
    """
    unit = torch.nn.functional.normalize(rows, dim=2)
    similarity = unit @ unit.transpose(1, 2) / temperature
    itself = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
    density: Tensor = torch.special.entr(similarity.masked_fill(itself, -torch.inf).softmax(dim=2)).sum(2).mean(1)
    return density


def class_confusion(rows: Tensor) -> Tensor:
    """Share of the classes' correlation PᵀP that lies off its diagonal, in [0, 1): (B, N, C) → (B,).

    Lower is better: pixels belong to one class each (Corr-C, Tu et al., "Assessing model out-of-distribution
    generalization with softmax prediction probability baselines and a correlation method", 2023).
    """
    correlation = rows.transpose(1, 2) @ rows
    on_diagonal: Tensor = correlation.diagonal(dim1=1, dim2=2).sum(1)
    return 1 - on_diagonal / correlation.sum((1, 2))


def nuclear_norm(rows: Tensor) -> Tensor:
    """Sum of the singular values of P over the largest that it can be, √(N · min(N, C)), in (0, 1]: (B, N, C) → (B,).

    Higher is better: predictions are confident and of many classes (Deng et al., arXiv 2302.01094, equation 3).
    """
    count, classes = rows.shape[1:]
    total: Tensor = torch.linalg.svdvals(rows).sum(1)
    return total / math.sqrt(count * min(count, classes))
