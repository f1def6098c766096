import torch

from sfda.networks.build import build_network
from sfda.networks.stages import describe_stages, encoder_stages


def test_a_stage_is_the_last_module_before_size_or_channels_change():
    network = build_network("deeplab_v2_resnet18", 3).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    channels = [64, 64, 128, 256, 512]
    strides = [2, 4, 8, 8, 8]  # dilated from layer3 on
    names = ["relu", "layer1", "layer2", "layer3", "layer4"]
    assert encoder_stages(network) == list(zip(names, channels, strides, strict=True))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_every_stage_can_be_asked_for():
    network = build_network("smp:DeepLabV3Plus/mobilenet_v2", 3).eval()
    for name, channels, stride in encoder_stages(network):
        with torch.no_grad():
            features = network(torch.rand(1, 3, 64, 64), features=name)[1]
        assert features.shape == (1, channels, 64 // stride, 64 // stride)
    assert "features.13 (96 channels, 1/16)" in describe_stages(network)
