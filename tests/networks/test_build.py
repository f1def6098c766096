import json
import socket
import urllib.error

import huggingface_hub.errors
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from sfda.errors import UserError
from sfda.networks.build import build_network
from sfda.networks.segmenter import HEAD_INPUT, IMAGENET_MEAN, Segmenter

FACTORIES = """
import torch
from torch import nn
from sfda.networks.segmenter import Segmenter

class Plain(nn.Sequential):
    align_corners = True

def plain(num_classes):
    return Plain(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))

class Split(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Sequential(nn.Conv2d(6, 5, 1), nn.Conv2d(5, num_classes, 1))
        self.backbone = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.aux = nn.Conv2d(6, num_classes, 1)

    def forward(self, images):
        features = self.backbone(images)
        return {"out": self.classifier(features), "aux": self.aux(features)}

def own_segmenter(num_classes):
    return Segmenter(plain(num_classes), num_classes, backbone="0", head="2", multiple=4, mean=(0.5, 0.5, 0.5))

def too_many(num_classes):
    return plain(num_classes + 1)

def no_module(num_classes):
    return "a string"

def no_convolution(num_classes):
    return nn.Identity()

number = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "networks.py").write_text(FACTORIES)
    (package / "broken.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    return "their_package.networks"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(smp.encoders, "hf_hub_download", refuse)


def ids(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters()}


@pytest.mark.parametrize(
    ("name", "multiple", "features"),
    [
        ("smp:DeepLabV3Plus/mobilenet_v2", 16, (4, 7)),
        ("smp:FPN/resnet18", 32, (2, 4)),
        ("smp:Segformer/mit_b0", 32, (2, 4)),
        ("smp:unet/tu-resnet18", 32, (2, 4)),
        ("smp:DPT/tu-vit_tiny_patch16_224", 32, (4, 8)),
    ],
)
def test_smp_networks_take_any_size(name, multiple, features, offline):
    network = build_network(name, 5).eval()
    images = torch.rand(1, 3, 53, 97)
    with torch.no_grad():
        logits, encoded = network.forward_features(images)
        again = network.apply_head(network(images, HEAD_INPUT)[1], (53, 97))
    assert logits.shape == (1, 5, 53, 97)
    assert encoded.shape[2:] == features
    assert network.multiple == multiple
    assert not network.align_corners
    torch.testing.assert_close(again, logits)
    parts = {part: ids(module) for part, module in network.parts().items()}
    assert parts["backbone"] == ids(network.network.encoder)
    assert parts["classifier"] == ids(network.network.decoder) | ids(network.network.segmentation_head)
    assert parts["head"] == ids(network.network.segmentation_head)
    assert len(parts["backbone"]) + len(parts["classifier"]) == len(ids(network))


def test_smp_logits_are_those_of_smp_where_no_padding_is_needed(offline):
    network = build_network("smp:DeepLabV3Plus/mobilenet_v2", 5).eval()
    images = torch.rand(1, 3, 32, 48)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = network.network((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(network(images), by_hand)


@pytest.mark.parametrize("name", ["deeplab_v2_resnet18", "smp:DeepLabV3Plus/mobilenet_v2"])
def test_state_dict_round_trip(name, tmp_path, offline):
    source, copy = build_network(name, 4).eval(), build_network(name, 4).eval()
    images = torch.rand(1, 3, 33, 50)
    assert not torch.equal(source(images), copy(images))
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    copy.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(source(images), copy(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deeplab_v2_resnet34", r"(?s)known forms.*deeplab_v2_resnet101.*smp:.*factory"),
        ("deeplab", "known forms"),
        ("smp:DeepLabV3Plus", "known forms"),
        ("smp:DeepLabV3Pluss/resnet18", "no architecture 'DeepLabV3Pluss'; close matches: DeepLabV3Plus"),
        ("smp:Unet/mobilnet_v2", "no encoder 'mobilnet_v2'; close matches: mobilenet_v2"),
        ("smp:Unet/tu-resnett18", "no timm encoder 'resnett18'; close matches: resnet18"),
        ("smp:Unet/%%", "no encoder '%%'; known: .*resnet"),
        ("smp:Unet/tu-vit_tiny_patch16_224", "refuses it: Unsupported"),
        ("no_such_package.module.factory", "importing no_such_package.module failed.*PYTHONPATH"),
    ],
)
def test_strings_that_name_no_network(name, message, offline):
    with pytest.raises(UserError, match=message):
        build_network(name, 5)


def test_a_plain_factory(factories):
    network = build_network(f"{factories}.plain", 6)
    first, _, last = network.network
    images = torch.rand(2, 3, 18, 30)
    logits, features = network.forward_features(images)
    assert logits.shape == (2, 6, 18, 30)
    torch.testing.assert_close(features, first(images).relu())  # images come as they are, in [0, 1]
    assert {part: ids(module) for part, module in network.parts().items()} == {
        "backbone": ids(first),
        "classifier": ids(last),
        "head": ids(last),
    }
    assert network.align_corners


def test_a_factory_whose_network_names_its_parts(factories):
    network = build_network(f"{factories}.Split", 6)
    bare, images = network.network, torch.rand(2, 3, 18, 30)
    logits, features = network.forward_features(images)
    assert logits.shape == (2, 6, 18, 30)
    torch.testing.assert_close(features, bare.backbone(images))
    assert {part: ids(module) for part, module in network.parts().items()} == {
        "backbone": ids(bare.backbone),
        "classifier": ids(bare.classifier) | ids(bare.aux),
        "head": ids(bare.classifier[1]),
    }
    assert not network.align_corners


def test_a_factory_may_give_a_segmenter(factories):
    network = build_network(f"{factories}.own_segmenter", 6)
    assert isinstance(network, Segmenter)
    assert not isinstance(network.network, Segmenter)
    assert network.mean.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("nothing", "no Python function or torch.nn.Module class 'nothing'"),
        ("number", "no Python function or torch.nn.Module class 'number'"),
        ("no_module", "gave a str, not a torch.nn.Module"),
        ("no_convolution", "gives 3 outputs for 6 classes"),
    ],
)
def test_factories_that_cannot_be_used(factories, attribute, message):
    with pytest.raises(UserError, match=message):
        build_network(f"{factories}.{attribute}", 6)


@pytest.mark.parametrize("network", ["os.system", "builtins.exit", "pathlib.Path", "numpy.zeros"])
def test_what_can_make_no_network_is_not_called(network):
    with pytest.raises(UserError, match=r"has no Python function or torch.nn.Module class .*nothing else is called"):
        build_network(network, 0)


def test_a_factory_module_that_fails_to_import(factories):
    with pytest.raises(UserError, match=r"importing their_package.broken failed.*a_library_that_is_not_there"):
        build_network("their_package.broken.factory", 6)


def test_a_factory_with_the_wrong_number_of_classes(factories):
    with pytest.raises(UserError, match=r"gives 7 outputs for 6 classes: 1 is no class\? .*drop_outputs"):
        build_network(f"{factories}.too_many", 6)


def test_factories_and_other_words_refuse_pretrained(factories):
    with pytest.raises(UserError, match="factory loads its own weights"):
        build_network(f"{factories}.plain", 6, "imagenet")
    with pytest.raises(UserError, match="pretrained 'ImageNet'"):
        build_network("deeplab_v2_resnet18", 6, "ImageNet")


def test_imagenet_weights_of_deeplab_v2(monkeypatch):
    torch.manual_seed(1)
    published = torchvision.models.resnet18().state_dict()
    urls = []

    def download(url, *_args, **_kwargs):
        urls.append(url)
        return published

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    network = build_network("deeplab_v2_resnet18", 5, "imagenet")
    assert urls == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url]
    loaded = network.parts()["backbone"].state_dict()
    assert set(loaded) == {name for name in published if not name.startswith("fc.")}
    assert all(torch.equal(value, published[name]) for name, value in loaded.items())


@pytest.mark.parametrize("error", [urllib.error.URLError("no route to host"), RuntimeError("invalid hash value")])
def test_a_failed_download_of_deeplab_v2_says_what_to_do(monkeypatch, error):
    def download(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    with pytest.raises(UserError, match=r"could not be downloaded.*checkpoints.*pretrained none"):
        build_network("deeplab_v2_resnet18", 5, "imagenet")


def test_imagenet_weights_of_smp_bring_their_own_normalisation(monkeypatch, tmp_path):
    torch.manual_seed(1)
    published = smp.encoders.get_encoder("mobilenet_v2").state_dict()
    safetensors.torch.save_file(published, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}))
    monkeypatch.setattr(smp.encoders, "hf_hub_download", lambda _repo, filename, **_: str(tmp_path / filename))
    network = build_network("smp:DeepLabV3Plus/mobilenet_v2", 5, "imagenet")
    loaded = network.network.encoder.state_dict()
    assert all(torch.equal(value, published[name]) for name, value in loaded.items())
    assert network.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert network.std.flatten().tolist() == pytest.approx([0.2, 0.2, 0.1])
    without = build_network("smp:DeepLabV3Plus/mobilenet_v2", 5)
    assert without.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_a_failed_download_of_smp_says_what_to_do(monkeypatch):
    def download(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("check your connection")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"could not be downloaded.*HF_HOME.*pretrained none"):
        build_network("smp:Unet/resnet18", 5, "imagenet")


def test_without_pretrained_nothing_is_downloaded(offline):
    for name in ("deeplab_v2_resnet18", "smp:Unet/resnet18", "smp:FPN/tu-resnet18"):
        assert build_network(name, 5).num_classes == 5
    with pytest.raises(AssertionError, match="touched"):
        build_network("deeplab_v2_resnet18", 5, "imagenet")
