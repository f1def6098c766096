"""DeepLabV2 on a dilated ResNet, the network of the papers (Chen et al., arXiv 1606.00915)."""

from collections import OrderedDict
from functools import reduce

import torch
import torchvision
from torch import Tensor, nn


class DeepLabV2(nn.Module):
    """ResNet of output stride 8 with an atrous spatial pyramid that gives the logits.

    The ResNets are torchvision's, whose bottlenecks carry the stride in the 3x3 convolution. Every 3x3 convolution of
    ``layer3`` has dilation 2 and of ``layer4`` 4, the first block's included.

    Args:
        resnet: One of torchvision's ResNets; its parameters are taken over, its pooling and ``fc`` left behind.
        num_classes: C.
        output_stride: 8 as published; 16 keeps the stride of ``layer3`` and halves the dilations after it, for
            about half the cost.
    """

    def __init__(self, resnet: nn.Module, num_classes: int, output_stride: int = 8) -> None:
        super().__init__()
        layers = OrderedDict((name, child) for name, child in resnet.named_children() if name not in ("avgpool", "fc"))
        if output_stride == 8:
            _dilate(layers["layer3"], 2)
        _dilate(layers["layer4"], 32 // output_stride)
        self.backbone = nn.Sequential(layers)
        channels = int(resnet.get_submodule("fc").in_features)  # type: ignore[arg-type]
        self.classifier = ASPP(channels, num_classes, [rate * 8 // output_stride for rate in (6, 12, 18, 24)])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → logits (B, C, ceil(H/s), ceil(W/s)), s the output stride."""
        logits: Tensor = self.classifier(self.backbone(images))
        return logits


class ASPP(nn.Module):
    """Sum of parallel dilated 3x3 convolutions, one a rate (arXiv 1606.00915, section 3.2); weights from N(0, 0.01²).

    Args:
        in_channels: D.
        num_classes: C.
        dilations: The rates.
    """

    def __init__(self, in_channels: int, num_classes: int, dilations: list[int]) -> None:
        super().__init__()
        branches = [
            nn.Conv2d(in_channels, num_classes, kernel_size=3, padding=rate, dilation=rate) for rate in dilations
        ]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) → logits (B, C, h, w)."""
        logits: Tensor = reduce(torch.add, (branch(features) for branch in self.branches))
        return logits


def resnet(name: str) -> nn.Module:
    """The ResNet of this name from torchvision, with random weights."""
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """First ImageNet weights of this ResNet from torchvision, downloaded unless they lie in the torch hub cache.

    Raises:
        OSError: they cannot be downloaded.
        RuntimeError: the download was damaged.
    """
    weights: dict[str, Tensor] = torchvision.models.get_model_weights(name).IMAGENET1K_V1.get_state_dict(
        progress=True, check_hash=True
    )
    return weights


def _dilate(stage: nn.Module, dilation: int) -> None:
    # By hand: torchvision's `replace_stride_with_dilation` refuses BasicBlock and leaves each stage's first block with
    # the dilation of the stage before.
    for conv in stage.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
