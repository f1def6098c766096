"""Entropy of predictions, and the losses that are made of it; no label is read."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfda.losses.mean import mean_over_pixels, number_of_pixels
from sfda.metrics.functional import at_least_float32
from sfda.ranks import ALONE, Ranks

_LARGEST_LOGIT = 1e30
"""Beyond it logits are as good as infinite; up to it, their differences are finite in float32."""


class _Entropy(torch.autograd.Function):
    """``−Σ p · log p`` over dim 1; its derivative ``−p · (log p + H)`` is the one large tensor that is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        # Finite logits make 0 · log 0 a zero instead of NaN.
        log_p = logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).log_softmax(1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(1, keepdim=True)
        ctx.save_for_backward(log_p.add_(entropy).mul_(p))
        return entropy.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        falling: Tensor = ctx.saved_tensors[0]
        return falling * -grad.unsqueeze(1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of every pixel's softmax: ``H = −Σ_c p_c · log p_c = logsumexp(z) − Σ_c p_c · z_c``.

    From logits (B, C, ...) to (B, ...) in nats, in [0, ln C], at least float32. Infinite logits give the limit, with a
    finite gradient. It can be differentiated once.
    """
    pixels: Tensor = _Entropy.apply(at_least_float32(logits))
    return pixels


def mean_entropy(logits: Tensor, valid: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean entropy of the real pixels (Tent, arXiv 2006.10726; L_ENT of IAPC, arXiv 2306.01598).

    Args:
        logits: (B, C, H, W).
        valid: (B, H, W) bool, False where a pixel is padding.
        ranks: Whose pixels are counted, see `sfda.losses.mean.mean_over_pixels`.

    Returns:
        Scalar in nats, in [0, ln C], at least float32; 0 with a gradient where no pixel is valid.
    """
    return mean_over_pixels(entropy(logits), valid, ranks)


def class_equalised_entropy(logits: Tensor, valid: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean over the predicted classes of the mean entropy of the pixels that are predicted as each.

    A rare class counts as much as one that fills the image, so that it is no loss to give up.

    Args:
        logits: (B, C, H, W).
        valid: (B, H, W) bool, False where a pixel is padding.
        ranks: Whose pixels are counted, and whose classes; averaged by DDP, the losses' gradient is that of all.

    Returns:
        Scalar in nats, in [0, ln C], at least float32; 0 with a gradient where no pixel is valid.
    """
    pixels = torch.where(valid, entropy(logits), 0)
    predicted = logits.detach().argmax(dim=1)
    sums = pixels.new_zeros(logits.shape[1]).scatter_add(0, predicted.flatten(), pixels.flatten())
    counts = torch.zeros_like(sums).scatter_add(0, predicted.flatten(), valid.flatten().to(sums.dtype))
    counts = ranks.mean(counts)
    return (sums / counts.where(counts > 0, 1)).sum() / (counts > 0).sum().clamp(min=1)


def normalised_entropy(logits: Tensor, valid: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Entropy regulariser of Cal-SFDA: mean of ``(h² + 1e-8)²`` with h = H / (largest H of the batch).

    Implemented from the published description (arXiv 2308.03003). The largest entropy is a constant of the batch: it
    carries no gradient.

    Args:
        logits: (B, C, H, W).
        valid: (B, H, W) bool, False where a pixel is padding.
        ranks: Whose largest entropy it is, and whose pixels are counted.

    Returns:
        Scalar in [0, 1] (and 2e-8 above it), at least float32; 0 with a gradient where no pixel is valid or none has
        any entropy.
    """
    pixels = torch.where(valid, entropy(logits), 0)
    largest = ranks.largest(pixels.amax())
    share = pixels / largest.clamp(min=1e-30)  # a smaller divisor would make the gradient overflow
    return mean_over_pixels((share**2 + 1e-8) ** 2, valid & (largest > 0), ranks)


def mean_probability_entropy(logits: Tensor, valid: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Entropy of the mean prediction of the real pixels: large where all classes are in use.

    The diversity term of information maximisation (SHOT, arXiv 2002.08546), whose loss is the mean entropy minus this.

    Args:
        logits: (B, C, H, W).
        valid: (B, H, W) bool, False where a pixel is padding.
        ranks: Whose mean prediction it is; with `ALL_RANKS` all of them get the same value.

    Returns:
        Scalar in nats, in [0, ln C], at least float32; 0 with a gradient where no pixel is valid.
    """
    probabilities = at_least_float32(logits).softmax(1)
    total = torch.where(valid.unsqueeze(1), probabilities, 0).sum((0, 2, 3))
    own = total / number_of_pixels(valid, total.dtype, ranks)
    # The value of all, with the gradient of one's own share: averaged by DDP, that is the gradient of all.
    mean = own + (ranks.mean(own) - own.detach())
    # The slope of −p · log p is infinite at 0, where a class is when no pixel gives it any probability.
    return -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()
