import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sfda.networks.batch_norm import batch_norm_layers
from sfda.networks.build import build_network
from sfda.networks.normalisation import affine_parameters, normalisation_layers


class OthersRMSNorm(nn.Module):
    """As libraries of transformers have them, derived from nothing of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class NormalBlock(nn.Module):
    """Called like one and none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


def test_all_kinds_are_found_in_order_and_nothing_else():
    layers = {
        "a": nn.BatchNorm1d(4),
        "b": nn.SyncBatchNorm(4),
        "c": nn.LayerNorm(4),
        "d": nn.GroupNorm(2, 4),
        "e": nn.InstanceNorm2d(4, affine=True),
        "f": nn.InstanceNorm2d(4),
        "g": nn.BatchNorm2d(4, affine=False),
        "h": nn.LayerNorm(4, bias=False),
        "i": nn.RMSNorm(4),
        "j": OthersRMSNorm(),
        "k": NormalBlock(),
        "l": nn.Linear(4, 4),
        "m": weight_norm(nn.Linear(4, 4)),
        "n": spectral_norm(nn.Linear(4, 4)),
    }
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    assert list(normalisation_layers(network)) == list("abcdefghij")
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [names[id(parameter)] for parameter in affine_parameters(network)]
    both = [f"{layer}.{kind}" for layer in "abcde" for kind in ("weight", "bias")]
    assert found == [*both, "h.weight", "i.weight", "j.weight"]


def test_a_layer_that_is_used_twice_counts_once():
    norm = nn.LayerNorm(4)
    assert len(list(affine_parameters(nn.Sequential(norm, nn.Linear(4, 4), norm)))) == 2


@pytest.mark.parametrize("network", ["smp:DeepLabV3Plus/mobilenet_v2", "deeplab_v2_resnet18"])
def test_where_all_of_them_are_batch_norm_the_parameters_are_those_of_its_layers(network):
    built = build_network(network, 3)
    expected = [p for module in built.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()]
    assert all(one is other for one, other in zip(affine_parameters(built), expected, strict=True))


def test_the_layers_of_a_transformer_of_a_hybrid_and_of_timm_are_found():
    segformer = build_network("smp:Segformer/mit_b0", 3)
    assert (len(normalisation_layers(segformer)), len(batch_norm_layers(segformer))) == (31, 1)
    convnext = build_network("smp:Unet/tu-convnext_atto", 3)
    kinds = {type(layer).__name__ for layer in normalisation_layers(convnext).values()}
    assert kinds == {"BatchNorm2d", "LayerNorm2d"}
