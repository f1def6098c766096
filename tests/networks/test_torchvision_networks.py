import pytest
import torch
import torch.nn.functional as F
import torchvision

from sfda.errors import UserError
from sfda.networks.build import build_network

IMAGES = torch.rand(1, 3, 45, 70, generator=torch.Generator().manual_seed(3))
NAMES = ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torchvision(name):
    torch.manual_seed(0)
    network = build_network(f"torchvision:{name}", 4).eval()
    bare = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4).eval()
    bare.load_state_dict(network.network.state_dict())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = bare.to(memory_format=torch.channels_last)((IMAGES - mean[:, None, None]) / std[:, None, None])
        assert torch.equal(network(IMAGES), F.interpolate(expected["out"], (45, 70), mode="bilinear"))
    assert network.multiple == 1
    assert network.parts()["backbone"] is network.network.backbone
    assert network._head == (None if name.startswith("lraspp") else "classifier.4")
    assert not any(key.startswith("aux") for key in network.network.state_dict())


def test_wrong_names_have_close_ones():
    with pytest.raises(
        UserError, match=r"no segmentation network of torchvision 'deeplabv3_resnet5'.*deeplabv3_resnet50"
    ):
        build_network("torchvision:deeplabv3_resnet5", 4)


def test_imagenet_weights_are_those_of_the_backbone(monkeypatch):
    urls = []

    def download(url, *_args, **_kwargs):
        urls.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    with pytest.raises(UserError, match=r"could not be downloaded.*pretrained none"):
        build_network("torchvision:lraspp_mobilenet_v3_large", 4, "imagenet")
    assert len(urls) == 1
    assert "mobilenet_v3_large" in urls[0]
