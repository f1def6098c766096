"""Networks as people have them, each with something that a guess gets wrong."""

import torch
import torch.nn.functional as F
from torch import nn


def encoder(channels: int = 8) -> nn.Sequential:
    """Stride 4."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
    )


class Merged(nn.Module):
    """Its last Conv2d in the order of definition is a depthwise convolution; the head is defined first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(8, num_classes, 1)
        self.encoder = encoder()
        self.merge = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, images):
        return F.interpolate(self.last(self.merge(self.encoder(images))), images.shape[-2:], mode="bilinear")


class Aligned(Merged):
    """Brings its logits to the images' size with align_corners."""

    def forward(self, images):
        logits = self.last(self.merge(self.encoder(images)))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=True)


class Needs32(nn.Module):
    """Five halvings and back, added to the image's own features: only multiples of 32 pass."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Sequential(*(nn.Conv2d(8, 8, 2, stride=2) for _ in range(5)))
        self.up = nn.Sequential(*(nn.ConvTranspose2d(8, 8, 2, stride=2) for _ in range(5)))
        self.last = nn.Conv2d(8, num_classes, 1)

    def forward(self, images):
        features = self.first(images)
        return self.last(features + self.up(self.down(features)))


class DropsTheRest(nn.Module):
    """Patches of 16; without an error, what is left at the right and below is not looked at. LayerNorm on tokens."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, stride=16)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, num_classes)

    def forward(self, images):
        maps = self.patches(images)
        tokens = self.mix(self.norm(maps.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).unflatten(2, maps.shape[2:])


class ManyMaps(nn.Module):
    """A main and an auxiliary output, in the form of `arrange`; in train mode alone where `in_training`."""

    def __init__(self, num_classes: int, arrange, in_training: bool = False) -> None:
        super().__init__()
        self.encoder = encoder()
        self.deeper = nn.Conv2d(8, 8, 3, padding=1)
        self.main = nn.Conv2d(8, num_classes, 1)
        self.aux = nn.Conv2d(8, num_classes, 1)
        self.arrange, self.in_training = arrange, in_training

    def forward(self, images):
        features = self.encoder(images)
        main = self.main(self.deeper(features).relu())
        return main if self.in_training and not self.training else self.arrange(main, self.aux(features))


class Pyramid(nn.Module):
    """Parallel convolutions, added up, as the head of DeepLabV2."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(8, num_classes, 3, padding=rate, dilation=rate) for rate in (1, 2))

    def forward(self, features):
        return sum(branch(features) for branch in self.branches)


class Then(nn.Module):
    """Encoder, head and what comes after it, of which the network gives the result."""

    def __init__(self, head: nn.Module, after=None) -> None:
        super().__init__()
        self.encoder = encoder()
        self.top = head
        self.after = after or (lambda logits, _: logits)

    def forward(self, images):
        return self.after(self.top(self.encoder(images)), images)


class SoftmaxInEval(Merged):
    """Logits to train on, probabilities to predict with."""

    def forward(self, images):
        logits = super().forward(images)
        return logits if self.training else logits.softmax(dim=1)


class OneSize(nn.Module):
    """Learnt positions of 12x12 patches of 8."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.positions = nn.Parameter(torch.randn(1, 8, 12, 12))
        self.last = nn.Conv2d(8, num_classes, 1)

    def forward(self, images):
        return self.last(self.patches(images) + self.positions)


def merged(num_classes: int) -> nn.Module:
    return Merged(num_classes)


def twenty_outputs(_num_classes: int) -> nn.Module:
    return Merged(20)


def needs_32(num_classes: int) -> nn.Module:
    return Needs32(num_classes)


def one_size(num_classes: int) -> nn.Module:
    return OneSize(num_classes)


def tokens(num_classes: int) -> nn.Module:
    return DropsTheRest(num_classes)


def softmax(num_classes: int) -> nn.Module:
    return Then(nn.Conv2d(8, num_classes, 1), lambda logits, _: logits.softmax(dim=1))


def headless(num_classes: int) -> nn.Module:
    """What it gives is no module's output."""
    return Then(nn.Conv2d(8, num_classes, 1), lambda logits, images: logits + 3 * images.mean())
