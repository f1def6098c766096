import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sfda.networks.batch_norm import (
    BatchStatistics,
    batch_norm_layers,
    input_layers,
    layer_shift,
    mix_statistics,
    read_statistics,
)
from sfda.networks.build import build_network


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 4, 3))
    network.add_module("bn1", nn.BatchNorm2d(4))
    network.add_module("relu", nn.ReLU())
    network.add_module("dropout", nn.Dropout(0.5))
    network.add_module("conv2", nn.Conv2d(4, 5, 3))
    network.add_module("bn2", nn.BatchNorm2d(5))
    for name in ("bn1", "bn2"):
        layer = network.get_submodule(name)
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return network


def pooled(maps: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance per channel of all values of (B, C, h, w) maps together."""
    values = np.concatenate(
        [m.detach().double().numpy().transpose(1, 0, 2, 3).reshape(m.shape[1], -1) for m in maps], 1
    )
    return values.mean(axis=1), values.var(axis=1, ddof=1)


def same_statistics(found, expected, rtol=1e-5):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=rtol, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    offset=st.sampled_from([0.0, 10.0, -300.0]),
    seed=st.integers(0, 10_000),
)
def test_statistics_are_those_of_all_batches_together(sizes, offset, seed):
    network = two_layers()
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.rand(size, 3, 7 + size, 9, generator=generator) + offset for size in sizes]
    with torch.no_grad(), BatchStatistics(network) as gathered:
        for batch in batches:
            network(batch)
    found = gathered.reduce().mean_and_variance()
    same_statistics(found["bn1"], pooled([network.conv1(batch) for batch in batches]), rtol=2e-5)


def test_deeper_layers_see_inputs_normalised_by_batch_statistics():
    network = two_layers()
    batches = [torch.rand(4, 3, 9, 10), torch.rand(2, 3, 8, 12) * 3]
    inputs = []
    for batch in batches:
        hidden = network.conv1(batch).detach().numpy().astype(np.float64)
        mean, variance = hidden.mean((0, 2, 3), keepdims=True), hidden.var((0, 2, 3), keepdims=True)
        weight, bias = (p.detach().numpy().reshape(1, -1, 1, 1) for p in (network.bn1.weight, network.bn1.bias))
        hidden = np.maximum((hidden - mean) / np.sqrt(variance + 1e-5) * weight + bias, 0)  # no dropout
        inputs.append(network.conv2(torch.from_numpy(hidden).float()))
    with torch.no_grad(), BatchStatistics(network) as gathered:
        for batch in batches:
            network(batch)
    same_statistics(gathered.mean_and_variance()["bn2"], pooled(inputs), rtol=1e-4)


def test_one_batch_gives_what_torch_would_write_into_its_buffers():
    network = build_network("smp:DeepLabV3Plus/mobilenet_v2", 4)
    images = torch.rand(4, 3, 32, 48)
    with torch.no_grad(), BatchStatistics(network) as gathered:
        network(images)
    by_torch = copy.deepcopy(network).eval()
    for layer in batch_norm_layers(by_torch).values():
        layer.train().momentum = 1.0
    with torch.no_grad():
        by_torch(images)
    expected = {n: (m.running_mean, m.running_var) for n, m in by_torch.named_modules() if hasattr(m, "running_var")}
    found = gathered.mean_and_variance()
    assert found.keys() == expected.keys()
    for name, statistics in found.items():
        for a, b in zip(statistics, expected[name], strict=True):
            torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-5)


def test_modes_buffers_and_hooks_are_as_before():
    network = two_layers()
    network.bn2.eval()
    before, flags = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]

    def unchanged():
        assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
        assert [m.training for m in network.modules()] == flags
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert network.bn1.track_running_stats

    images = torch.rand(2, 3, 9, 9)
    with BatchStatistics(network):
        assert [m.training for m in network.children()] == [False, True, False, False, False, True]
        network(images)
        network(images * float("nan"))
    unchanged()
    with pytest.raises(KeyError), BatchStatistics(network):
        raise KeyError
    unchanged()
    input_layers(network, images)
    unchanged()


def test_half_precision_is_summed_in_float():
    network = two_layers()
    images = torch.rand(8, 3, 40, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), BatchStatistics(network) as gathered:
        network(images)
        maps = network.conv1(images)
    assert maps.dtype == torch.bfloat16
    same_statistics(gathered.mean_and_variance()["bn1"], pooled([maps]))


def test_ranks_are_pooled(on_two_ranks):
    batches = [torch.rand(3, 3, 9, 9), torch.rand(2, 3, 8, 8) * 5, torch.rand(4, 3, 9, 9) - 2]

    def gather(own):
        network = two_layers()
        with torch.no_grad(), BatchStatistics(network) as gathered:
            for batch in own:
                network(batch)
        return gathered.reduce().mean_and_variance()

    ranks = on_two_ranks(lambda rank: gather(batches[:1] if rank == 0 else batches[1:]))
    expected = gather(batches)
    for name in ("bn1", "bn2"):
        for first, second, together in zip(ranks[0][name], ranks[1][name], expected[name], strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, together, rtol=1e-9, atol=1e-12)


def test_a_rank_without_batches_and_a_layer_without_passes():
    network = two_layers()
    network.add_module("idle", nn.Identity())
    network.idle.bn = nn.BatchNorm2d(2)
    with BatchStatistics(network) as gathered:
        pass
    assert gathered.mean_and_variance() == {}
    with torch.no_grad(), BatchStatistics(network) as gathered:
        network(torch.rand(2, 3, 9, 9))
    assert set(gathered.mean_and_variance()) == {"bn1", "bn2"}


def test_which_layers_count():
    network = nn.ModuleDict(
        {
            "first": nn.BatchNorm2d(2),
            "without": nn.BatchNorm2d(2, track_running_stats=False),
            "instance": nn.InstanceNorm2d(2, track_running_stats=True),
            "synchronised": nn.SyncBatchNorm(2),
            "another": nn.BatchNorm1d(2),
        }
    )
    assert list(batch_norm_layers(network)) == ["first", "synchronised", "another"]
    assert list(read_statistics(network)) == ["first", "synchronised", "another"]


class TwoStems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.Hardswish())
        self.fine = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6())
        self.coarse = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.shared = nn.BatchNorm2d(4)

    def forward(self, images):
        stems = torch.cat([self.fine(images), nn.functional.interpolate(self.coarse(images), images.shape[-2:])], 1)
        return self.shared(self.late(stems)) + self.shared(images[:, [0, 1, 2, 0], 2:, 2:])


def test_input_layers_of_parallel_stems():
    # `shared` sees the image too, but once also what the others give.
    assert input_layers(TwoStems(), torch.rand(1, 3, 12, 12)) == {"fine.1", "coarse.2"}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("smp:DeepLabV3Plus/mobilenet_v2", "network.encoder.features.0.1"),
        ("smp:Unet/tu-mobilenetv3_small_050", "network.encoder.model.bn1"),
        ("deeplab_v2_resnet18", "network.backbone.bn1"),
    ],
)
def test_input_layers_of_real_networks(name, layer):
    network = build_network(name, 4)
    before = copy.deepcopy(network.state_dict())
    assert input_layers(network, torch.rand(1, 3, 33, 47)) == {layer}
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert all(m.training for m in network.modules())


@settings(deadline=None, max_examples=20)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_mixed_statistics(alpha, seed):
    network, rng = two_layers(), np.random.default_rng(seed)
    source = read_statistics(network)
    target = {n: tuple(torch.from_numpy(rng.uniform(0.1, 5, len(m))) for _ in "mv") for n, (m, _) in source.items()}
    mix_statistics(network, source, target, alpha)
    for name in ("bn1", "bn2"):
        layer = network.get_submodule(name)
        for index, buffer in enumerate((layer.running_mean, layer.running_var)):
            expected = (1 - alpha) * source[name][index].numpy() + alpha * target[name][index].numpy()
            np.testing.assert_allclose(buffer.numpy(), expected, rtol=1e-6, atol=1e-7)
    mix_statistics(network, source, target, 0.0)
    assert all(torch.equal(a, b) for n in source for a, b in zip(read_statistics(network)[n], source[n], strict=True))


def test_only_the_layers_named_are_mixed():
    network = two_layers()
    source = read_statistics(network)
    target = {name: (mean + 1, variance * 2) for name, (mean, variance) in source.items()}
    mix_statistics(network, source, target, 1.0, layers={"bn2"})
    after = read_statistics(network)
    assert torch.equal(after["bn1"][0], source["bn1"][0])
    torch.testing.assert_close(after["bn2"][1], source["bn2"][1] * 2)
    network.bn1.running_mean.zero_()
    assert not torch.equal(source["bn1"][0], torch.zeros(4, dtype=torch.float64))  # a copy, not a view


def test_eval_mode_after_mixing_all_of_target_is_train_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = torch.rand(8, 3, 30, 30) * 4
    with torch.no_grad(), BatchStatistics(network) as gathered:
        in_train_mode = network(images)
    mix_statistics(network, read_statistics(network), gathered.mean_and_variance(), 1.0)
    torch.testing.assert_close(network.eval()(images), in_train_mode, atol=1e-3, rtol=1e-3)


def test_layer_shift_by_hand():
    source = {"bn": (torch.tensor([0.0, 2.0]).double(), torch.tensor([4.0, 1.0]).double())}
    target = {"bn": (torch.tensor([1.0, 5.0]).double(), torch.tensor([1.0, 9.0]).double())}
    ((layer, mean_shift, variance_ratio),) = layer_shift(source, target)
    assert layer == "bn"
    assert mean_shift == pytest.approx((1 / 2 + 3 / 1) / 2, rel=1e-4)
    assert variance_ratio == pytest.approx((1 / 4 + 9) / 2, rel=1e-4)
    dead = {"bn": (torch.zeros(1).double(), torch.zeros(1).double())}
    assert layer_shift(dead, dead) == [("bn", 0.0, 1.0)]
