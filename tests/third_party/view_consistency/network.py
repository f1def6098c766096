"""A network: any module whose logits have an input's height and width, or a fraction of them."""

from torch import nn


class Small(nn.Module):
    """Two convolutions and a classifier; what a method may ask for by name is `backbone` and `classifier`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Conv2d(16, num_classes, 1)

    def forward(self, images):
        return self.classifier(self.backbone(images))
