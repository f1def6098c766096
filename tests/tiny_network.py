"""A network of a few thousand parameters with everything a method may ask for, as a third party's factory."""

from torch import nn


def build(num_classes: int) -> nn.Module:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Dropout2d(0.2),  # what a resumed run has to draw again
            )
            self.classifier = nn.Conv2d(16, num_classes, 1)

        def forward(self, images):
            return self.classifier(self.backbone(images))

    return Tiny()


def build_with_pooling(num_classes: int, eps: float = 1e-5) -> nn.Module:
    """The same with a branch that pools globally under BatchNorm, as DeepLabV3's ASPP has one."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, eps=eps))
            self.classifier = nn.Conv2d(8, num_classes, 1)

        def forward(self, images):
            features = self.backbone(images)
            return self.classifier(features + self.pooling(features))

    return Pooled()


def build_with_eps_0(num_classes: int) -> nn.Module:
    return build_with_pooling(num_classes, eps=0)
