"""CoTTA: its loss against numpy, its teacher, what goes back to the source model, streams, resuming."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfda.errors import UserError
from sfda.methods.cotta import PAPER_SCALES, CoTTA, random_views, restore_weights
from tiny_runs import NETWORK, die, tiny_arguments

LAYER_NORM = "tiny_network.build_with_layer_norm"


def make(network=NETWORK, **options):
    torch.manual_seed(0)
    return CoTTA(network=network, num_classes=5, **options)


def random_batch(valid=0.7):
    torch.manual_seed(1)
    images, strong = torch.rand(2, 2, 3, 16, 24)
    return {"target": {"image": images, "strong": strong, "valid": torch.rand(2, 16, 24) < valid}}


def softmax(z):
    odds = np.exp(z - z.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def state_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def part(state, prefix):
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


# --------------------------------------------------------------------- loss


@pytest.mark.parametrize(
    ("views", "scales"),
    [("single", None), ("multi_scale", (0.75, 1, 1.25)), ("paper", (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2))],
)
def test_the_loss_is_the_soft_cross_entropy_with_the_teachers_mean_over_views(views, scales):
    """−Σ_c y_c log p_c of every real pixel: y of the teacher on the weak view, p of the student on the strong one."""
    method, batch = make(label_views=views).eval(), random_batch()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        target = batch["target"]
        if scales is None:
            labels = softmax(method.network(target["image"]).double().numpy())
        else:
            total = 0.0
            for scale in scales:
                size = (round(16 * scale), round(24 * scale))
                view = F.interpolate(target["image"], size=size, mode="bilinear", antialias=True)
                for mirrored in (False, True):
                    logits = method.network(view.flip(3) if mirrored else view)
                    p = softmax(F.interpolate(logits, size=(16, 24), mode="bilinear").double().numpy())
                    total = total + (p[..., ::-1] if mirrored else p)
            labels = total / (2 * len(scales))
        student = softmax(method.student(target["strong"]).double().numpy())
    pixels = -(labels * np.log(student)).sum(axis=1)
    losses = method.compute_losses(batch)
    assert set(losses) == {"consistency"}
    assert losses["consistency"].item() == pytest.approx(pixels[target["valid"].numpy()].mean(), abs=1e-5)


def test_the_papers_views_are_fourteen():
    assert len(PAPER_SCALES) * 2 == 14


def test_all_of_the_student_and_nothing_else_gets_a_gradient():
    method = make(network=LAYER_NORM, restore=0.5).train()
    method.set_modes()
    assert not any(module.training for module in method.network.modules())
    assert all(module.training for module in method.student.modules())
    method.train_only_what_is_trained()
    method.compute_losses(random_batch())["consistency"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.student.parameters())
    rest = (*method.network.parameters(), *method.source.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in rest)


def test_only_padding_gives_zero_with_a_gradient():
    method = make().train()
    loss = method.compute_losses(random_batch(valid=0))["consistency"]
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in method.student.parameters())


# --------------------------------------------------------------------- teacher and restoring


def test_the_teacher_is_the_moving_average_and_predicts():
    method = make(teacher_momentum=0.75).eval()
    before = copy.deepcopy(method.network)
    with torch.no_grad():
        for value in (*method.student.parameters(), method.student.network.backbone[1].running_mean):
            value.add_(torch.rand_like(value))
    method.after_optimizer_step()
    old, student = dict(before.named_parameters()), method.student.state_dict()
    for key, value in method.network.state_dict().items():
        expected = 0.75 * old[key] + 0.25 * student[key] if key in old else student[key]
        torch.testing.assert_close(value, expected)
    images = torch.rand(1, 3, 12, 16)
    with torch.no_grad():
        assert torch.equal(method.predict_probabilities(images), method.network(images).softmax(1))


def test_each_weight_goes_back_with_the_probability_and_the_others_stay():
    source, network = torch.nn.Linear(300, 200), torch.nn.Linear(300, 200)
    before = copy.deepcopy(network)
    restore_weights(network, source, 0.1, seed=3)
    for now, old, original in zip(network.parameters(), before.parameters(), source.parameters(), strict=True):
        back = now == original
        assert torch.equal(now[~back], old[~back])
    share = (network.weight == source.weight).double().mean().item()
    assert share == pytest.approx(0.1, abs=5 * (0.1 * 0.9 / 60_000) ** 0.5)

    again, other = copy.deepcopy(before), copy.deepcopy(before)
    restore_weights(again, source, 0.1, seed=3)
    restore_weights(other, source, 0.1, seed=4)
    assert torch.equal(again.weight, network.weight)
    assert not torch.equal(other.weight, network.weight)
    restore_weights(other, source, 1.0, seed=5)
    assert torch.equal(other.weight, source.weight)


@pytest.mark.parametrize("option", ["teacher_momentum", "restore"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(UserError, match=option):
        make(**{option: 1.5})


# --------------------------------------------------------------------- fits


def arguments_of(town, source_model, **options):
    options = {"lr": 0.01, "teacher_momentum": 0.5, **options}
    arguments = tiny_arguments("cotta", town, source_model)
    return [*arguments, *(word for key, value in options.items() for word in (f"--model.init_args.{key}", str(value)))]


@pytest.mark.medium
def test_a_resumed_fit_that_restores_weights_is_bit_equal_and_needs_no_source_model(town, source_model, sfda, tmp_path):
    copied = tmp_path / "source.ckpt"
    copied.write_bytes(source_model.read_bytes())
    arguments = [*arguments_of(town, copied, restore=0.2), "--trainer.max_epochs", "2"]
    assert sfda("fit", *arguments, "--out", tmp_path / "whole") == 0
    die(arguments, tmp_path / "part")
    copied.unlink()
    assert sfda("fit", "--run", tmp_path / "part") == 0
    whole, resumed, source = map(state_of, (tmp_path / "whole/last.ckpt", tmp_path / "part/last.ckpt", source_model))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    for key, value in part(source, "network.").items():
        assert torch.equal(whole[f"source.module.{key}"], value)

    # of 8·3·9 + 16·8·9 weights, each was last moved by a step of AdamW and then set back with probability 0.2
    student, kernels = part(whole, "student."), [f"network.backbone.{layer}.weight" for layer in (0, 3)]
    back = torch.cat([(student[key] == source[f"network.{key}"]).flatten() for key in kernels]).double().mean()
    assert 0.15 < float(back) < 0.25


@pytest.mark.medium
def test_two_processes_restore_the_same_weights(town, source_model, sfda, tmp_path, states_of_ranks):
    strategy = "{class_path: lightning.pytorch.strategies.DDPStrategy, "
    strategy += "init_args: {start_method: fork, broadcast_buffers: false}}"
    arguments = [*arguments_of(town, source_model, restore=0.2), "--data.init_args.batch_size", "2"]
    arguments += ["--trainer.devices", "2", "--trainer.strategy", strategy]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    one, other = states_of_ranks()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.medium
def test_a_stream_moves_teacher_and_student_from_the_source_model_on_and_again(town, source_model, sfda, tmp_path):
    arguments = [*arguments_of(town, source_model, online=True, restore=0.01), "--data.init_args.val_batch_size", "1"]
    assert sfda("validate", *arguments, "--out", tmp_path / "run") == 0
    row = json.loads((tmp_path / "run/result.json").read_text())
    source, state = state_of(source_model), state_of(tmp_path / "run/selected.ckpt")
    for key, value in source.items():
        if key not in ("network.mean", "network.std"):
            assert not torch.equal(state[key], value), key
            assert not torch.equal(state[key.replace("network.", "student.", 1)], value), key
    assert row["trained_parameters"] == sum(
        value.numel() for key, value in source.items() if key.endswith(("weight", "bias"))
    )
    # a stream begins with the source model, whatever a checkpoint holds, and draws the same again
    assert sfda("validate", "--run", tmp_path / "run", "--out", tmp_path / "again") == 0
    again = state_of(tmp_path / "again/selected.ckpt")
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    assert json.loads((tmp_path / "again/result.json").read_text())["target_nll"] == row["target_nll"]
    assert sfda("fit", *arguments, "--out", tmp_path / "fit") == 2


def test_views_of_a_stream_are_mirrored_or_not_and_the_strong_ones_belong_to_the_weak():
    torch.manual_seed(0)
    images = (torch.rand(12, 3, 8, 10) * 255).round() / 255
    weak, strong = random_views(images, np.random.default_rng(0))
    mirrored = [torch.allclose(one, image.flip(2)) for one, image in zip(weak, images, strict=True)]
    kept = [torch.allclose(one, image) for one, image in zip(weak, images, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert any(kept)
    assert strong.shape == weak.shape
    assert (strong != weak).any()
    assert 0 <= strong.min() <= strong.max() <= 1
    again = random_views(images, np.random.default_rng(0))
    assert torch.equal(weak, again[0])
    assert torch.equal(strong, again[1])
