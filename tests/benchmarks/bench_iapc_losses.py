"""The four losses of IAPC, forward and backward, against loops over images and classes."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.losses.class_balanced_cross_entropy import (
    RARE_SHARE,
    class_balanced_cross_entropy,
    class_pixels,
    class_weights,
    update_absence,
)
from sfda.losses.entropy import mean_entropy
from sfda.losses.importance import pixel_importance
from sfda.losses.mean import mean_over_pixels
from sfda.losses.prototype_contrast import (
    cosine_similarities,
    feature_sums,
    nearest_prototype,
    prototype_symmetric_cross_entropy,
    resize_nearest,
)
from side_by_side import Row, Where, faster

CLASSES, FEATURES, BATCH, SIZE, SMALL = 19, 1024, 2, (256, 512), (32, 64)
RARE = 7.0
NEEDS_NETWORK, ON_GPU = False, True


def ours(
    logits: Tensor, features: Tensor, memory: Tensor, remembered: Tensor, source: Tensor, labels: Tensor
) -> Tensor:
    """As in `IAPC.compute_losses`, without the networks."""
    valid = torch.ones_like(labels, dtype=torch.bool)
    pixels = class_pixels(labels, CLASSES)
    absence = update_absence(torch.ones(CLASSES, device=labels.device), pixels, RARE)
    balanced = class_balanced_cross_entropy(logits, labels, class_weights(pixels, labels.numel(), absence, RARE))
    omega = pixel_importance(source.softmax(1))
    sums, counts = feature_sums(memory, resize_nearest(remembered.argmax(1), SMALL), CLASSES)
    similarities = cosine_similarities(features, sums)
    nearest = resize_nearest(nearest_prototype(similarities, counts > 0), SIZE)
    upsampled = F.interpolate(similarities, SIZE, mode="bilinear", align_corners=False)
    return (
        2.0 * mean_entropy(logits, valid)
        + 0.2 * mean_over_pixels(omega * balanced, valid)
        + 0.5 * mean_over_pixels(torch.where(nearest == labels, balanced, 0), valid)
        + 0.04 * prototype_symmetric_cross_entropy(logits, nearest, upsampled, counts > 0, valid)
    )


def loops(
    logits: Tensor, features: Tensor, memory: Tensor, remembered: Tensor, source: Tensor, labels: Tensor
) -> Tensor:
    """The formulas image by image and class by class, masks and sorted probabilities."""
    weights = []
    for c in range(CLASSES):
        pixels = (labels == c).sum()
        weight = (0.9 + 0.1 * RARE) if pixels == 0 else 1.0
        weights.append(weight * RARE if pixels < RARE_SHARE * labels.numel() else weight)
    log_p = logits.log_softmax(1)
    balanced = torch.zeros(labels.shape, device=logits.device)
    for c in range(CLASSES):
        balanced = balanced + (labels == c) * weights[c] * -log_p[:, c]
    entropy = -(log_p.exp() * log_p).sum(1)
    best = source.softmax(1).sort(dim=1, descending=True).values
    importance = 1 - best[:, 1] / best[:, 0]
    total = 2.0 * entropy.mean() + 0.2 * (importance * balanced).mean()
    small = F.interpolate(remembered.argmax(1, keepdim=True).float(), SMALL)[:, 0].long()
    enhanced, first, second, seen = 0.0, 0.0, 0.0, 0
    for i in range(BATCH):
        similarities = []
        for c in range(CLASSES):
            of_class = small[i] == c
            if of_class.any():
                prototype = memory[i][:, of_class].mean(1)
                similarities.append(F.cosine_similarity(features[i], prototype[:, None, None], dim=0))
            else:
                similarities.append(torch.full(SMALL, -1e9, device=logits.device))
        stacked = torch.stack(similarities)
        nearest = F.interpolate(stacked.argmax(0)[None, None].float(), SIZE)[0, 0].long()
        upsampled = F.interpolate(stacked[None], SIZE, mode="bilinear", align_corners=False)
        predicted = logits[i].argmax(0)
        for c in range(CLASSES):
            agreed = (nearest == c) & (labels[i] == c)
            enhanced = enhanced + (balanced[i] * agreed).sum()
            if not (small[i] == c).any():
                predicted = torch.where(predicted == c, 255, predicted)
        first = first + F.cross_entropy(logits[i][None], nearest[None], reduction="sum")
        second = second + F.cross_entropy(upsampled, predicted[None], ignore_index=255, reduction="sum")
        seen = seen + (predicted != 255).sum()
    return total + 0.5 * enhanced / labels.numel() + 0.04 * (first / labels.numel() + second / seen)


def rows(where: Where) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)

    def draw(channels: int, size: tuple[int, int]) -> Tensor:
        coarse = 3 * torch.randn(BATCH, channels, 8, 16, generator=generator)
        return F.interpolate(coarse, size, mode="bilinear", align_corners=False).to(where.device)

    tensors = [
        draw(CLASSES, SIZE),
        draw(FEATURES, SMALL),
        draw(FEATURES, SMALL),
        draw(CLASSES, SIZE),
        draw(CLASSES, SIZE),
    ]
    labels = draw(CLASSES, SIZE).argmax(1)
    trained = [tensor.requires_grad_() for tensor in tensors[:2]]

    def step(losses: object) -> float:
        for tensor in trained:
            tensor.grad = None
        loss = losses(*tensors, labels)
        loss.backward()
        return loss.item()

    assert abs(step(ours) - step(loops)) < 1e-3 * abs(step(ours)), (step(ours), step(loops))
    name = f"IAPC's losses + backward, {BATCH}x{CLASSES}x{SIZE[0]}x{SIZE[1]}"
    yield faster(name, lambda: step(ours), "loops over images and classes", lambda: step(loops), 5, where)
