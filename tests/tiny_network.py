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


class Tokens(nn.Module):
    """A patch embedding and one MLP block on tokens, normalised as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.before = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.after = nn.LayerNorm(8)

    def forward(self, images):
        tokens = self.embed(images).movedim(1, -1)
        return self.after(tokens + self.mlp(self.before(tokens))).movedim(-1, 1)


class TwoParts(nn.Module):
    """A backbone under a convolution."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def forward(self, images):
        return self.classifier(self.backbone(images))


def build_with_layer_norm(num_classes: int) -> nn.Module:
    return TwoParts(Tokens(), num_classes)


def build_with_group_norm(num_classes: int) -> nn.Module:
    return TwoParts(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GroupNorm(2, 8), nn.ReLU()), num_classes)


def build_without_normalisation(num_classes: int) -> nn.Module:
    return TwoParts(nn.Conv2d(3, 8, 4, stride=4), num_classes)
