import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sfda.errors import UserError
from sfda.methods.urma import URMA, squared_distance
from sfda.networks.segmenter import HEAD_INPUT
from tiny_runs import NETWORK, tiny_arguments


def softmax(z):
    z = np.exp(z - z.max())
    return z / z.sum()


def batch_of(images, valid):
    return {"target": {"image": images, "valid": valid}}


def scattered(method):
    """Heads that are no copies any more, the main one confident at times."""
    generator = torch.Generator().manual_seed(0)
    for head in (method.network.head, *method.auxiliary_heads):
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=2.0, generator=generator)
    return method


def test_the_losses_are_those_of_the_formula():
    method = URMA(0.8, 3, 0.0, entropy_weight=0.7, uncertainty_weight=0.3, network=NETWORK, num_classes=4).eval()
    scattered(method)
    images, valid = torch.rand(2, 3, 12, 16), torch.rand(2, 12, 16) < 0.6
    with torch.no_grad():  # some pixels are confident, others not, whatever was drawn
        confidence = method.network(images).softmax(1).amax(1)[valid].sort().values
    widest = confidence.diff()[20:-20].argmax() + 20  # no pixel lies on the threshold
    method.confidence_threshold = threshold = confidence[widest : widest + 2].mean().item()
    losses = {name: loss.item() for name, loss in method.compute_losses(batch_of(images, valid)).items()}
    with torch.no_grad():
        main, features = method.network(images, HEAD_INPUT)
        others = [method.network.resize(head(features), (12, 16)).numpy() for head in method.auxiliary_heads]
    ce, entropy, distance = [], [], []
    for b, y, x in zip(*np.nonzero(valid.numpy()), strict=True):
        p = softmax(main[b, :, y, x].double().numpy())
        entropy.append(-(p * np.log(p)).sum() / np.log(4))
        if p.max() >= threshold:
            ce.append(-np.log(p.max()))
        distance.append(sum(((softmax(z[b, :, y, x]) - p) ** 2).mean() for z in others))
    assert 0 < len(ce) < len(entropy)
    assert losses["pseudo_label"] == pytest.approx(np.mean(ce), abs=1e-5)
    assert losses["entropy"] == pytest.approx(0.7 * np.mean(entropy), abs=1e-5)
    assert losses["uncertainty"] == pytest.approx(0.3 * np.mean(distance), abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 150), st.integers(1, 3), st.integers(1, 3), st.floats(0, 1), st.booleans())
def test_squared_distance_is_a_mean_over_valid_pixels_and_classes(classes, height, width, share, saturated):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, height, width, generator=generator, dtype=torch.float64) * (
        1e4 if saturated else 1
    )
    p = torch.randn(2, classes, height, width, generator=generator, dtype=torch.float64).softmax(1)
    valid = torch.rand(2, height, width, generator=generator) < share
    terms = [
        (softmax(logits[b, :, y, x].numpy())[c] - p[b, c, y, x].item()) ** 2
        for b, y, x in zip(*np.nonzero(valid.numpy()), strict=True)
        for c in range(classes)
    ]
    assert squared_distance(logits, p, valid).item() == pytest.approx(np.mean(terms) if terms else 0, abs=1e-12)


def test_squared_distance_against_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    p = torch.randn(1, 3, 2, 3, generator=generator, dtype=torch.float64).softmax(1)
    valid = torch.tensor([[[True, False, True], [True, True, False]]])
    assert torch.autograd.gradcheck(lambda z: squared_distance(z, p, valid), (logits,))
    half = squared_distance(logits.detach().half(), p, valid)
    assert half.dtype == torch.float64  # p's; the softmax itself was raised


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("padded", [False, True])
def test_every_trained_parameter_has_a_finite_gradient(threshold, padded):
    method = URMA(threshold, network=NETWORK, num_classes=4).train()
    valid = torch.full((2, 16, 16), not padded)
    total = sum(method.compute_losses(batch_of(torch.rand(2, 3, 16, 16), valid)).values())
    total.backward()
    parameters = [parameter for group in method.trainable_parameters() for parameter in group["params"]]
    assert len(parameters) == len(list(method.parameters()))
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in parameters)
    if padded:
        assert total.item() == 0


def test_the_uncertainty_moves_the_features_and_the_auxiliary_heads_and_not_the_main_one():
    method = scattered(URMA(network=NETWORK, num_classes=4).train())
    losses = method.compute_losses(batch_of(torch.rand(2, 3, 16, 16), torch.ones(2, 16, 16, dtype=torch.bool)))
    losses["uncertainty"].backward()
    assert all(parameter.grad is None for parameter in method.network.head.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.auxiliary_heads.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.network.parts()["backbone"].parameters())


def test_each_auxiliary_head_drops_other_channels(monkeypatch):
    from torch.nn.functional import dropout2d

    method, seen = URMA(network=NETWORK, num_classes=4).eval(), []

    def keep(features, probability, training=True, inplace=False):
        if not training:  # the network's own
            return features
        assert probability == 0.5
        seen.append(dropout2d(torch.ones_like(features), probability))
        return seen[-1]

    monkeypatch.setattr("torch.nn.functional.dropout2d", keep)
    method.compute_losses(batch_of(torch.rand(2, 3, 16, 16), torch.ones(2, 16, 16, dtype=torch.bool)))
    assert len(seen) == 4
    assert all(set(drawn.unique().tolist()) == {0.0, 2.0} for drawn in seen)
    assert all(torch.equal(drawn.amax((2, 3)), drawn.amin((2, 3))) for drawn in seen)  # whole channels
    assert not any(torch.equal(seen[0], other) for other in seen[1:])


def test_auxiliary_logits_are_those_of_the_network_where_heads_agree_and_nothing_is_dropped():
    method = URMA(dropout=0.0, network="smp:DeepLabV3Plus/mobilenet_v2", num_classes=4).eval()
    images = torch.rand(1, 3, 50, 70)  # is padded to 64 x 80 inside
    with torch.no_grad():
        logits, features = method.network(images, HEAD_INPUT)
        for head in method.auxiliary_heads:
            assert torch.equal(method._auxiliary_logits(head, features, images.shape[-2:]), logits)


def test_the_heads_learn_ten_times_as_fast_unless_told_otherwise():
    method = URMA(network=NETWORK, num_classes=4, lr=0.5)
    heads = {
        id(parameter) for head in (method.network.head, *method.auxiliary_heads) for parameter in head.parameters()
    }
    optimizer = method.configure_optimizers()["optimizer"]
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates == {id(parameter): 5.0 if id(parameter) in heads else 0.5 for parameter in method.parameters()}
    alike = URMA(head_lr=1.0, network=NETWORK, num_classes=4, lr=0.5).configure_optimizers()["optimizer"]
    assert {group["lr"] for group in alike.param_groups} == {0.5}


@pytest.mark.parametrize(
    "options",
    [
        {"confidence_threshold": 1.1},
        {"dropout": 1.0},
        {"heads": 0},
        {"entropy_weight": -1.0},
        {"uncertainty_weight": -0.1},
        {"head_lr": -1.0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        URMA(**options, network=NETWORK, num_classes=4)


@pytest.mark.medium
def test_auxiliary_heads_begin_as_the_source_head_are_trained_saved_and_never_predict(
    town, source_model, sfda, tmp_path
):
    states = []
    for lr in (0.0, 0.05):
        arguments = [*tiny_arguments("urma", town, source_model), "--model.init_args.lr", lr]
        assert sfda("fit", *arguments, "--model.init_args.weight_decay", 0, "--out", tmp_path / str(lr)) == 0
        states.append(torch.load(tmp_path / str(lr) / "selected.ckpt", weights_only=True)["state_dict"])
    source = torch.load(source_model, weights_only=True)["state_dict"]
    for k in range(4):
        for kind in ("weight", "bias"):
            assert torch.equal(states[0][f"auxiliary_heads.{k}.{kind}"], source[f"network.network.classifier.{kind}"])
        assert not torch.equal(states[1][f"auxiliary_heads.{k}.weight"], states[0][f"auxiliary_heads.{k}.weight"])
    assert set(states[1]) - set(source) == {
        f"auxiliary_heads.{k}.{kind}" for k in range(4) for kind in ("weight", "bias")
    }

    method = URMA.load_from_checkpoint(tmp_path / "0.05/selected.ckpt", weights_only=True).eval()
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        before = method.predict_probabilities(images)
        for parameter in method.auxiliary_heads.parameters():
            parameter.fill_(torch.nan)
        assert torch.equal(method.predict_probabilities(images), before)
