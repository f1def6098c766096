import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sfda.errors import UserError
from sfda.networks.segmenter import BACKBONE, HEAD_INPUT, IMAGENET_MEAN, IMAGENET_STD, Segmenter, eval_mode


class Toy(nn.Module):
    """Encoder of stride 4 with an intermediate layer, decoder, head; and a parameter that hangs between them."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        self.encoder.add_module("stem", nn.Conv2d(3, 5, 3, stride=2, padding=1))
        self.encoder.add_module("norm", nn.BatchNorm2d(5))
        self.encoder.add_module("deep", nn.Conv2d(5, 6, 3, stride=2, padding=1))
        self.decoder = nn.Sequential(nn.Conv2d(6, 7, 1), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Conv2d(7, num_classes, 3, padding=1)

    def forward(self, images):
        return self.head(self.decoder(self.encoder(images)) * self.scale)


def toy(**options) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(Toy(), 4, **{"backbone": "encoder", "head": "head"} | options)


class Keep(nn.Module):
    """Hands its input on and remembers it; the convolution is there to be a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.conv.weight)

    def forward(self, images):
        self.seen = images.detach().clone()
        return self.conv(images)


def normalised(images: torch.Tensor) -> np.ndarray:
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.numpy() - mean) / std


@settings(deadline=None, max_examples=25)
@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.sampled_from([1, 4, 16, 32]))
def test_images_are_normalised_and_padded_inside_and_the_logits_cropped_back(height, width, multiple):
    images = torch.rand(2, 3, height, width)
    network = Keep()
    logits = Segmenter(network, 3, head="conv", multiple=multiple)(images)
    expected = normalised(images)
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-6)
    below, right = (-(-n // multiple) * multiple - n for n in (height, width))
    padded = np.pad(expected, ((0, 0), (0, 0), (0, below), (0, right)), mode="edge")
    np.testing.assert_allclose(network.seen.numpy(), padded, atol=1e-6)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("length", [3, 5, 9, 23])
def test_resize_follows_the_networks_align_corners(align_corners, length):
    values = np.array([1.0, -2.0, 4.0, 0.5, 3.0], np.float32)
    if align_corners:
        positions = np.arange(length) * (len(values) - 1) / (length - 1)
    else:
        positions = (np.arange(length) + 0.5) * len(values) / length - 0.5
    expected = np.interp(positions, np.arange(len(values)), values)
    logits = torch.from_numpy(values).expand(2, 4, 5, 5)
    resized = toy(align_corners=align_corners).resize(logits, (7, length))
    assert resized.shape == (2, 4, 7, length)
    np.testing.assert_allclose(resized[1, 2, 3].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("multiple", [1, 8])
def test_features_of_any_layer_come_with_the_logits(multiple):
    network, images = toy(multiple=multiple).eval(), torch.rand(2, 3, 21, 34)
    bare, inputs = network.network, torch.from_numpy(normalised(images))
    if multiple == 8:
        inputs = nn.functional.pad(inputs, (0, 6, 0, 3), mode="replicate")
    f = bare.encoder(inputs)
    expected = {
        BACKBONE: f,
        HEAD_INPUT: bare.decoder(f) * bare.scale,
        "stem": bare.encoder.stem(inputs),
        "encoder.stem": bare.encoder.stem(inputs),
        "decoder": bare.decoder(f),
    }
    for layer, features in expected.items():
        logits, found = network(images, layer)
        torch.testing.assert_close(found, features)
        torch.testing.assert_close(logits, network(images))
        assert network.feature_channels(layer) == features.shape[1]
    assert torch.equal(network.forward_features(images)[1], network.forward_features(images, BACKBONE)[1])
    torch.testing.assert_close(network.apply_head(network(images, HEAD_INPUT)[1], (21, 34)), network(images))
    assert not any(module._forward_hooks for module in network.modules())


def test_an_unknown_layer_is_refused_with_those_there_are():
    network = toy()
    stages = r"norm \(5 channels, 1/2\), deep \(6 channels, 1/4\)"
    with pytest.raises(UserError, match=f"layer 'stemm'.*take backbone, .*{stages}"):
        network(torch.rand(1, 3, 8, 8), "stemm")
    network.network.encoder.idle = nn.Conv2d(3, 3, 1)
    network.network.encoder.forward = lambda images: network.network.encoder.deep(network.network.encoder.stem(images))
    with pytest.raises(UserError, match=r"layer 'idle'.*gives no map"):
        network(torch.rand(1, 3, 8, 8), "idle")


def test_a_network_of_the_wrong_number_of_classes_is_refused():
    with pytest.raises(UserError, match=r"gives 4 channels.*for 19 classes"):
        Segmenter(Toy(), 19, head="head")(torch.rand(1, 3, 8, 8))


def test_a_mapping_is_read_at_out():
    class Wrapped(Toy):
        def forward(self, images):
            return {"out": super().forward(images), "aux": images}

    network = Segmenter(Wrapped(), 4, head="head")
    assert network(torch.rand(1, 3, 16, 12)).shape == (1, 4, 16, 12)


@pytest.mark.parametrize("backbone", ["encoder", None])
def test_every_parameter_is_in_backbone_or_classifier(backbone):
    network = toy(backbone=backbone)
    parts = {name: {id(p) for p in part.parameters()} for name, part in network.parts().items()}
    every = {id(p) for p in network.parameters()}
    assert parts["backbone"] | parts["classifier"] == every
    assert not parts["backbone"] & parts["classifier"]
    assert parts["head"] <= parts["classifier"]
    assert parts["head"] == {id(network.network.head.weight), id(network.network.head.bias)}
    assert (id(network.network.scale) in parts["classifier"]) == (backbone is not None)


def test_parts_freeze_and_switch_modes_of_the_network_itself():
    network = toy()
    before = list(network.state_dict())
    backbone, classifier, _ = network.parts().values()
    backbone.requires_grad_(False).eval()
    assert not network.network.encoder.norm.training
    assert network.network.decoder.training
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == {
        name for name, _ in network.named_parameters() if "encoder" in name
    }
    classifier.eval()
    assert not network.network.decoder[1].training
    assert list(network.state_dict()) == before


def test_state_dict_carries_the_preprocessing(tmp_path):
    source, other = toy(), toy(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    nn.init.normal_(other.network.head.weight)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    images = torch.rand(2, 3, 9, 13)
    assert torch.equal(source.eval()(images), other.eval()(images))
    assert not {"mean", "std"} & {name for name, _ in source.named_parameters()}


def test_the_gradient_reaches_the_images():
    images = torch.rand(1, 3, 21, 34, requires_grad=True)
    logits, features = toy(multiple=8)(images, BACKBONE)
    (logits.square().sum() + features.sum()).backward()
    assert images.grad.abs().sum(dim=(0, 1)).gt(0).all()


def test_feature_channels_leaves_no_trace():
    network = toy()
    network.network.decoder.eval()
    before, flags = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    assert network.feature_channels() == 6
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert [m.training for m in network.modules()] == flags


def test_eval_mode_is_undone_after_an_error():
    network = toy()
    network.network.encoder.norm.eval()
    flags = [m.training for m in network.modules()]
    with eval_mode(network):
        assert not any(m.training for m in network.modules())
    with pytest.raises(KeyError), eval_mode(network):
        raise KeyError
    assert [m.training for m in network.modules()] == flags


def test_bfloat16_autocast():
    network, images = toy(multiple=8).eval(), torch.rand(1, 3, 21, 34)
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = network(images, BACKBONE)
    assert logits.shape == (1, 4, 21, 34)
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), network(images), atol=0.05, rtol=0.05)


def test_ddp_averages_the_gradients_of_logits_and_features(on_two_ranks):
    images = torch.rand(4, 3, 16, 24)

    def loss(network, batch):
        logits, features = network(batch, BACKBONE)
        return logits.square().mean() + features.mean()

    def one_rank(rank):
        network = nn.parallel.DistributedDataParallel(toy().eval())
        loss(network, images[2 * rank : 2 * rank + 2]).backward()
        return [p.grad for p in network.parameters()]

    ranks = on_two_ranks(one_rank)
    together = toy().eval()
    loss(together, images).backward()
    for first, second, expected in zip(*ranks, [p.grad for p in together.parameters()], strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected)


class Pooled(Toy):
    """A branch that pools globally under BatchNorm, as DeepLabV3's ASPP has one."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(6, eps=eps))

    def forward(self, images):
        features = self.encoder(images)
        return self.head(self.decoder(features + self.pooling(features)))


@pytest.mark.parametrize(
    ("images", "eps", "message"), [(1, 1e-5, "one value per channel.*batch_size"), (2, 0.0, "eps 0.0.*1e-5")]
)
def test_a_batch_norm_layer_that_cannot_train_is_named(images, eps, message):
    network = Segmenter(Pooled(eps), 4, backbone="encoder", head="head")
    with pytest.raises(UserError, match=rf"layer 'pooling\.1' .*{message}"):
        network(torch.rand(images, 3, 16, 16))
    network.eval()(torch.rand(1, 3, 16, 16))  # to predict with it is another thing
