"""Forward and backward of the class-wise calibration loss against loops over images, classes and bins."""

from collections.abc import Iterator

import torch

from sfda.losses.calibration import classwise_ece
from side_by_side import Row, Where, faster

CLASSES, BINS, TEMPERATURE = 19, 10, 1e-5
NEEDS_NETWORK, ON_GPU = False, True


def mask_loop(p, labels):
    """A mask of the whole image for every class and bin."""
    soft = TEMPERATURE * torch.logsumexp(p / TEMPERATURE, 1)
    confidence, predicted = p.detach().max(1)
    images = []
    for i in range(len(p)):
        classes = []
        for c in labels[i].unique().tolist():
            if c == 255:
                continue
            of_class = labels[i] == c
            correct = (predicted[i] == c).float()
            error = 0.0
            for m in range(BINS):
                inside = of_class & (confidence[i] > m / BINS) & (confidence[i] <= (m + 1) / BINS)
                if inside.any():
                    error = error + inside.sum() * (correct[inside].mean() - soft[i][inside].mean()).abs()
            classes.append(error / of_class.sum())
        images.append(torch.stack(classes).mean())
    return torch.stack(images).mean()


def subset_loop(p, labels):
    """The same, the pixels of a class picked out first."""
    soft = TEMPERATURE * torch.logsumexp(p / TEMPERATURE, 1)
    confidence, predicted = p.detach().max(1)
    images = []
    for i in range(len(p)):
        classes = []
        for c in labels[i].unique().tolist():
            if c == 255:
                continue
            of_class = labels[i] == c
            hard, own, correct = confidence[i][of_class], soft[i][of_class], (predicted[i][of_class] == c).float()
            error = 0.0
            for m in range(BINS):
                inside = (hard > m / BINS) & (hard <= (m + 1) / BINS)
                if inside.any():
                    error = error + inside.sum() * (correct[inside].mean() - own[inside].mean()).abs()
            classes.append(error / len(hard))
        images.append(torch.stack(classes).mean())
    return torch.stack(images).mean()


def rows(where: Where) -> Iterator[Row]:
    for height, width in ((96, 192), (256, 512)):
        generator = torch.Generator().manual_seed(0)
        p = (2 * torch.randn(4, CLASSES, height, width, generator=generator)).softmax(1).to(where.device)
        p.requires_grad_()
        labels = torch.randint(0, CLASSES, (4, height, width), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        labels = labels.to(where.device)

        def forward_backward(loss, p=p, labels=labels):
            p.grad = None
            value = loss(p, labels)
            value.backward()
            return value.item()

        for loop in (mask_loop, subset_loop):
            assert abs(forward_backward(loop) - forward_backward(classwise_ece)) < 1e-5
            yield faster(
                f"class-wise ECE, forward + backward, 4x{CLASSES}x{height}x{width}",
                lambda: forward_backward(classwise_ece),
                loop.__name__.replace("_", " "),
                lambda loop=loop: forward_backward(loop),
                10,
                where,
            )
