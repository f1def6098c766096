import math

import numpy as np
import pytest
import torch
from torch import nn

from sfda.networks.build import build_network
from sfda.networks.deeplab_v2 import ASPP


def dilated_convolution(image: np.ndarray, weight: np.ndarray, bias: np.ndarray, rate: int) -> np.ndarray:
    """Same-size dilated 3x3 correlation of a (D, h, w) map, cell by cell."""
    _, height, width = image.shape
    out = np.tile(bias[:, None, None].astype(np.float64), (1, height, width))
    for row, column in np.ndindex(height, width):
        for i, j in np.ndindex(3, 3):
            y, x = row + (i - 1) * rate, column + (j - 1) * rate
            if 0 <= y < height and 0 <= x < width:
                out[:, row, column] += weight[:, :, i, j] @ image[:, y, x]
    return out


def test_aspp_is_the_sum_of_its_dilated_convolutions():
    torch.manual_seed(0)
    rates = [1, 2, 3, 6]
    aspp = ASPP(2, 3, rates)
    for branch in aspp.branches:
        nn.init.normal_(branch.weight)
    features = torch.randn(1, 2, 7, 9)
    expected = sum(
        dilated_convolution(features[0].numpy(), *(p.detach().numpy() for p in (branch.weight, branch.bias)), rate)
        for branch, rate in zip(aspp.branches, rates, strict=True)
    )
    np.testing.assert_allclose(aspp(features)[0].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stride", "layer3", "layer4", "aspp"),
    [
        ("deeplab_v2_resnet18", 8, 2, 4, [6, 12, 18, 24]),
        ("deeplab_v2_resnet50", 8, 2, 4, [6, 12, 18, 24]),
        ("deeplab_v2_resnet18@16", 16, 1, 2, [3, 6, 9, 12]),
    ],
)
def test_strides_and_dilations(name, stride, layer3, layer4, aspp):
    network = build_network(name, 5)
    backbone = network.network.backbone
    for stage, rate in ((backbone.layer2, 1), (backbone.layer3, layer3), (backbone.layer4, layer4)):
        rates = {m.dilation[0] for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
        assert rates == {rate}
    assert [branch.dilation[0] for branch in network.head.branches] == aspp
    logits, features = network.eval().forward_features(torch.rand(1, 3, 53, 97))
    assert logits.shape == (1, 5, 53, 97)
    assert features.shape[2:] == (math.ceil(53 / stride), math.ceil(97 / stride))
    assert network.forward_features(torch.rand(1, 3, 53, 97), "layer2")[1].shape[2:] == (7, 13)
    assert network.align_corners


def test_initial_weights():
    torch.manual_seed(0)
    network = build_network("deeplab_v2_resnet18", 19)
    assert len(network.head.branches) == 4
    for branch in network.head.branches:
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert branch.bias is not None
    parts = {name: [id(p) for p in part.parameters()] for name, part in network.parts().items()}
    assert parts["classifier"] == parts["head"]
    assert len(parts["head"]) == 8


def test_size_of_the_papers_network():
    network = build_network("deeplab_v2_resnet101", 19)
    # torchvision's ResNet101 has 44,549,160 parameters, of which its classifier has 2048·1000 + 1000.
    assert sum(p.numel() for p in network.parts()["backbone"].parameters()) == 44_549_160 - 2_049_000
    assert sum(p.numel() for p in network.parts()["head"].parameters()) == 4 * (2048 * 19 * 9 + 19)
    with torch.no_grad():
        logits, features = network.eval().forward_features(torch.rand(1, 3, 33, 65))
    assert logits.shape == (1, 19, 33, 65)
    assert features.shape == (1, 2048, 5, 9)


def test_it_trains_on_a_batch():
    network = build_network("deeplab_v2_resnet18", 3)
    images = torch.rand(2, 3, 33, 41, requires_grad=True)
    network(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert images.grad.abs().sum() > 0
