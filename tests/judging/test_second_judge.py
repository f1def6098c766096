"""The second judge: the untrained source model at its best, without a label."""

import copy

import pytest
import torch
from torch import nn

from sfda.judging.second_judge import ALPHAS, SCALES, SCORED, second_judge
from sfda.metrics.label_free import LabelFreeMetrics
from sfda.networks.build import build_network
from tiny_runs import NETWORK

SIZE = (24, 32)


def images(count=10, seed=1):
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def every_candidate(network, shown):
    """InfoMax of each size and α, by a copy in train mode that sees all images as one batch."""
    found = {}
    for scale in SCALES:
        seen = nn.functional.interpolate(
            shown, [round(scale * side) for side in SIZE], mode="bilinear", align_corners=False, antialias=True
        )
        for alpha in ALPHAS:
            changed = copy.deepcopy(network).eval()
            layers = [layer for layer in changed.modules() if isinstance(layer, nn.BatchNorm2d)]
            known = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None
                layer.train()
            with torch.no_grad():
                changed(seen)
            for layer, (mean, variance) in zip(layers, known, strict=True):
                layer.eval()
                layer.running_mean.lerp_(mean, 1 - alpha)
                layer.running_var.lerp_(variance, 1 - alpha)
            scores = LabelFreeMetrics(19)
            with torch.no_grad():
                both = [changed.resize(changed(x), SIZE).softmax(1) for x in (seen, seen.flip(-1))]
            probabilities = (both[0] + both[1].flip(-1)) / 2
            scores.update(probabilities[:SCORED])
            found[scale, alpha] = float(scores.compute()["infomax"]), probabilities
    return found


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_candidate_with_the_largest_infomax(seed):
    torch.manual_seed(seed)
    network = build_network(NETWORK, 19).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.weight, 1, 4)
    before = copy.deepcopy(network.state_dict())
    shown = images()
    judge = second_judge(network, lambda: iter([shown]), lambda probabilities: probabilities)
    found = every_candidate(network, shown)
    best = max(found, key=lambda key: found[key][0])
    with torch.no_grad():
        torch.testing.assert_close(judge(shown, SIZE), found[best][1], atol=2e-4, rtol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_it_is_chosen_over_the_scored_classes():
    network = build_network(NETWORK, 19).eval()
    judge = second_judge(network, lambda: iter([images()]), lambda probabilities: probabilities[:, :5])
    assert judge(images(2, seed=2), (7, 9)).shape == (2, 5, 7, 9)
