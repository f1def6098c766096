import copy

import torch
from torch import nn

from sfda.networks.frozen import Frozen


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = network()
        self.frozen = Frozen(network())


def test_it_stays_in_eval_mode_whatever_the_module_around_it_does():
    around = Around().train()
    assert around.trained.training
    assert not any(module.training for module in around.frozen.modules())
    around.frozen.train()
    assert not any(module.training for module in around.frozen.modules())


def test_a_forward_pass_changes_nothing_and_gives_no_gradient():
    around = Around().train()
    before = copy.deepcopy(around.frozen.state_dict())
    images = torch.randn(4, 3, 5, 5, requires_grad=True)
    one, other = around.frozen(images), around.frozen(images)
    assert torch.equal(one, other)  # no dropout, no batch statistics
    assert not one.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in around.frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in around.frozen.parameters())


def test_an_optimizer_over_all_parameters_leaves_it_alone():
    around = Around()
    before = copy.deepcopy(around.frozen.state_dict())
    optimizer = torch.optim.SGD(around.parameters(), 0.1, weight_decay=0.1)
    images = torch.randn(4, 3, 5, 5)
    (around.trained(images) - around.frozen(images)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in around.frozen.state_dict().items())


def test_its_weights_are_saved_with_the_module_around_it():
    around, other = Around(), Around()
    assert not torch.equal(around.frozen.module[0].weight, other.frozen.module[0].weight)
    other.load_state_dict(around.state_dict())
    assert torch.equal(around.frozen.module[0].weight, other.frozen.module[0].weight)


def test_arguments_are_handed_on():
    class Scaled(nn.Module):
        def forward(self, images, scale=1.0):
            return images * scale

    assert Frozen(Scaled())(torch.ones(1), scale=3.0) == 3
