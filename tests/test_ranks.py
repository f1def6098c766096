"""Losses do not depend on how many processes a batch is spread over."""

import math

import numpy as np
import pytest
import torch

from sfda.losses.cross_entropy import cross_entropy
from sfda.losses.entropy import mean_entropy, mean_probability_entropy, normalised_entropy
from sfda.losses.negative_learning import negative_learning
from sfda.losses.prototype_contrast import prototype_symmetric_cross_entropy
from sfda.losses.symmetric_cross_entropy import symmetric_cross_entropy
from sfda.methods.cal_sfda import CalSFDA
from sfda.methods.da_cal_source_free import DACalSourceFree
from sfda.methods.info_max import InfoMax
from sfda.methods.mean_teacher_source_free import MeanTeacherSourceFree
from sfda.methods.self_training import SelfTraining
from sfda.methods.urma import URMA
from sfda.ranks import (
    ALL_RANKS,
    ALONE,
    at_once,
    largest_over_ranks,
    mean_of_all_ranks,
    mean_over_ranks,
    smallest_over_ranks,
    sum_on_cpu_over_ranks,
    sum_over_ranks,
)
from tiny_runs import NETWORK

CLASSES = 5


def random_batch():
    """Four images; of the second half few pixels are labelled, real and uncertain."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, CLASSES, 6, 8, generator=generator, dtype=torch.float64)
    logits[2:] *= 4
    logits[2:, 1] += 3
    labels = torch.randint(0, CLASSES, (4, 6, 8), generator=generator)
    labels[2:].masked_fill_(torch.rand(2, 6, 8, generator=generator) < 0.8, 255)
    valid = torch.rand(4, 6, 8, generator=generator) < torch.tensor([0.9, 0.9, 0.4, 0.4]).view(-1, 1, 1)
    return logits, labels, valid


WEIGHTS = torch.tensor([0.1, 2.0, 0.5, 1.0, 1.4], dtype=torch.float64)
LOSSES = {
    "symmetric_cross_entropy": lambda z, y, valid, ranks: symmetric_cross_entropy(z, y, WEIGHTS, 1.0, ranks=ranks),
    "cross_entropy": lambda z, y, valid, ranks: cross_entropy(z, y, ranks),
    "negative_learning": lambda z, y, valid, ranks: negative_learning(z, 2, valid, ranks),
    "prototype_symmetric_cross_entropy": lambda z, y, valid, ranks: prototype_symmetric_cross_entropy(
        z, y, z.flip(1), torch.tensor([[True, False, True, False, True]]).expand(len(z), -1), valid, ranks
    ),
    "mean_entropy": lambda z, y, valid, ranks: mean_entropy(z, valid, ranks),
    "normalised_entropy": lambda z, y, valid, ranks: normalised_entropy(z, valid, ranks),
    "mean_probability_entropy": lambda z, y, valid, ranks: mean_probability_entropy(z, valid, ranks),
}


def value_and_gradient(loss, batch, ranks):
    logits = batch[0].clone().requires_grad_()
    value = loss(logits, *batch[1:], ranks)
    value.backward()
    return value.detach(), logits.grad


def emptied(rank):
    """The batch, the part of one rank (None: of none) without a label and a real pixel."""
    logits, labels, valid = random_batch()
    if rank is not None:
        labels[2 * rank :][:2] = 255
        valid[2 * rank :][:2] = False
    return logits, labels, valid


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_have_the_loss_and_gradient_of_one(name, on_two_ranks):
    """The mean of the ranks' values and of their gradients, which is DDP's; one of them may have no pixel at all."""
    batches = [emptied(rank) for rank in (None, 0, 1)]

    def halves(ranks, rank):
        return [value_and_gradient(LOSSES[name], [part[2 * rank :][:2] for part in b], ranks) for b in batches]

    one, other = on_two_ranks(lambda rank: halves(ALL_RANKS, rank))
    alone = [halves(ALONE, rank) for rank in range(2)]
    for i, batch in enumerate(batches):
        expected, gradient = value_and_gradient(LOSSES[name], batch, ALONE)
        assert abs((alone[0][i][0] + alone[1][i][0]) / 2 - expected) > 0.003  # each by itself: another loss
        torch.testing.assert_close((one[i][0] + other[i][0]) / 2, expected)
        torch.testing.assert_close(torch.cat([one[i][1], other[i][1]]) / 2, gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_one_process_computes_the_same_bits_with_and_without_ranks(name):
    batch = random_batch()
    for all_ranks, alone in zip(*(value_and_gradient(LOSSES[name], batch, r) for r in (ALL_RANKS, ALONE)), strict=True):
        assert torch.equal(all_ranks, alone)


def make(method_class):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "confidence_threshold": 0.6} if method_class is URMA else {}
    if method_class is CalSFDA:
        method_class = type("Fixed", (CalSFDA,), {"shared_draws": lambda self: np.random.default_rng(0)})
    method = method_class(network=NETWORK, num_classes=CLASSES, **options).eval()
    if isinstance(method, CalSFDA):
        method._class_weights = WEIGHTS.float()
    for module in method.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.6)
    return method


def part_of(batch, rank):
    return {"target": {key: value[2 * rank :][:2] for key, value in batch["target"].items()}}


@pytest.mark.parametrize("method_class", [CalSFDA, InfoMax, URMA, SelfTraining])
def test_a_method_loses_on_two_ranks_what_it_loses_on_one(method_class, on_two_ranks):
    method, (_, labels, valid) = make(method_class), random_batch()
    images = torch.rand(4, 3, 6, 8)
    batch = {"target": {"image": images, "pseudo_label": labels, "valid": valid}}
    with torch.no_grad():
        expected = method.compute_losses(batch)
        ranks = on_two_ranks(lambda rank: method.compute_losses(part_of(batch, rank)))
    for name, value in expected.items():
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, value)


@pytest.mark.parametrize("method_class", [MeanTeacherSourceFree, DACalSourceFree])
def test_the_teacher_is_as_sure_on_two_ranks_as_on_one(method_class, on_two_ranks):
    method, (logits, _, valid) = make(method_class), random_batch()
    valid[2] = valid[3] = False  # the second rank's part of the mean is 0
    probabilities = logits.float().softmax(1)
    method.threshold = 0.6
    batch = {"target": {"strong": torch.rand(4, 3, 6, 8), "valid": valid}}

    def weight(rank):
        return method.mix(part_of(batch, rank), probabilities[2 * rank :][:2]).weight

    expected = (probabilities.amax(1) >= 0.6)[valid].float().mean()
    assert 0.1 < expected < 0.9
    for got in on_two_ranks(weight):
        torch.testing.assert_close(got, expected.expand_as(got))


def test_several_tensors_are_reduced_at_once(on_two_ranks):
    def mean(rank):
        return at_once(mean_over_ranks, [torch.full((2, 3), float(rank)), torch.tensor(4.0 * rank)])

    for tensors in on_two_ranks(mean):
        assert torch.equal(tensors[0], torch.full((2, 3), 0.5))
        assert tensors[1] == 2
    assert at_once(mean_over_ranks, [torch.tensor(3.0)]) == [3]


def test_reductions_look_at_the_values_of_all_ranks(on_two_ranks):
    """One rank has one value, the other two: the mean of all is not the mean of the ranks' means."""

    def reduced(rank):
        values = torch.tensor([1.0]) if rank == 0 else torch.tensor([2.0, 6.0])
        ends = [reduce(values.sum()) for reduce in (sum_over_ranks, largest_over_ranks, smallest_over_ranks)]
        return torch.stack([*ends, torch.tensor(mean_of_all_ranks(values)), sum_on_cpu_over_ranks(values[0])])

    for got in on_two_ranks(reduced):
        assert got.tolist() == [9, 8, 1, 3, 3]
    assert math.isnan(mean_of_all_ranks(torch.empty(0)))


def test_a_reduction_leaves_the_values_of_a_rank_alone(on_two_ranks):
    def values(rank):
        mine = torch.tensor([float(rank)])
        for reduce in (sum_over_ranks, largest_over_ranks, smallest_over_ranks, mean_over_ranks):
            reduce(mine)
        return mine

    assert [value.item() for value in on_two_ranks(values)] == [0, 1]
