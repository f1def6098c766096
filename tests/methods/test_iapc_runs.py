"""Whole runs of IAPC: three networks, an EMA, labels made once."""

import shutil

import cv2
import pytest
import torch
import torch.nn.functional as F

from sfda.data.transforms import RandomViews
from sfda.methods import iapc
from sfda.methods.iapc import IAPC
from tiny_runs import NETWORK, die, tiny_arguments

# DDP would hide differences between the ranks' buffers.
STRATEGY = """{class_path: lightning.pytorch.strategies.DDPStrategy,
               init_args: {start_method: fork, broadcast_buffers: false}}"""


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def part(weights, name):
    return {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}


def arguments_of(town, source_model, **options):
    arguments = tiny_arguments("iapc", town, source_model)
    for option, value in ({"lr": 0.02, "warmup_steps": 0, "memory_momentum": 0.9} | options).items():
        arguments += [f"--model.init_args.{option}", str(value)]
    return arguments


@pytest.mark.medium
@pytest.mark.parametrize(("steps", "status"), [(3, 2), (4, 0)])
def test_a_run_that_outlasts_its_decay_is_refused(steps, status, town, source_model, sfda, tmp_path, capfd):
    arguments = [*arguments_of(town, source_model, poly_steps=steps), "--trainer.max_epochs", "1"]
    arguments += ["--data.init_args.samples_per_epoch", "16"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == status
    assert ("the learning rate is 0 after 3 steps, but this run takes 4" in capfd.readouterr().err) == bool(status)
    assert len(list((tmp_path / "run/pseudo_labels/labels").glob("*.png"))) == 16  # kept for the next try


@pytest.mark.medium
def test_crops_of_many_classes_are_looked_for(town, source_model, sfda, tmp_path, monkeypatch):
    """More than 10, as published; it is the loader's views that look."""
    seen, make = [], RandomViews.__init__

    def watched(self, *arguments, **options):
        make(self, *arguments, **options)
        seen.append((self.photometry is not None, self.wanted_classes))

    monkeypatch.setattr(RandomViews, "__init__", watched)
    assert sfda("fit", *arguments_of(town, source_model), "--out", tmp_path / "run") == 0
    assert seen == [(True, 10)]


@pytest.mark.medium
def test_memory_follows_optimizer_steps_not_batches(town, source_model, sfda, tmp_path, monkeypatch):
    """Closed form m^n·s + (1 − m)·Σ m^(n−i)·g_i under gradient accumulation of 4: 12 batches are 3 steps."""
    visited = []
    follow = IAPC.after_optimizer_step

    def watched(self):
        visited.append({name: p.detach().clone() for name, p in self.network.named_parameters()})
        follow(self)

    monkeypatch.setattr(IAPC, "after_optimizer_step", watched)
    arguments = [*arguments_of(town, source_model), "--data.init_args.samples_per_epoch", "48"]
    arguments += ["--trainer.accumulate_grad_batches", "4"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    assert len(visited) == 3
    weights, source = state(tmp_path / "run/last.ckpt"), part(state(source_model), "network.")
    memory, trained = part(weights, "memory.module."), part(weights, "network.")
    for name, last in visited[-1].items():
        expected = 0.9**3 * source[name]
        for i, current in enumerate(visited):
            expected = expected + 0.1 * 0.9 ** (2 - i) * current[name]
        torch.testing.assert_close(memory[name], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(trained[name], last)
        is_affine = name.startswith(("network.backbone.1.", "network.backbone.4."))
        assert torch.equal(last, source[name]) == is_affine, name
    for name, value in part(weights, "source.module.").items():
        assert torch.equal(value, source[name]), name
    running = "network.backbone.1.running_mean"
    assert not torch.equal(trained[running], source[running])
    assert torch.equal(trained[running], memory[running])


@pytest.mark.medium
def test_labels_are_the_source_models_over_six_views(town, source_model, sfda, tmp_path):
    assert sfda("fit", *arguments_of(town, source_model), "--out", tmp_path / "run") == 0
    files = sorted((tmp_path / "run/pseudo_labels/labels").glob("*.png"))
    assert len(files) == 16
    method = IAPC(network=NETWORK, num_classes=19).eval()
    method.network.load_state_dict(part(state(source_model), "network."))
    for file in files[::5]:
        found = list((town / "cityscapes/leftImg8bit/train").rglob(f"{file.stem}*"))
        bgr = cv2.imread(str(found[0]))
        image = torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
        total = 0.0
        with torch.no_grad():
            for size in ((24, 48), (32, 64), (40, 80)):
                view = F.interpolate(image, size=size, mode="bilinear", antialias=True)
                for mirrored in (False, True):
                    p = method.network(view.flip(3) if mirrored else view)
                    p = F.interpolate(p, size=(32, 64), mode="bilinear").softmax(1)
                    total = total + (p.flip(3) if mirrored else p)
        agreement = (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) == total.argmax(1)[0].numpy()).mean()
        assert agreement > 0.999  # a tie may fall the other way


@pytest.mark.medium
def test_a_resumed_run_needs_no_source_model_and_labels_nothing_anew(town, source_model, sfda, tmp_path, monkeypatch):
    """The third network is in the checkpoint, the labels are in the run folder."""
    copied = tmp_path / "source.ckpt"
    shutil.copy(source_model, copied)
    run = tmp_path / "run"
    arguments = [*arguments_of(town, copied, prototypes="momentum"), "--trainer.max_epochs", "2"]
    die(arguments, run)
    copied.unlink()
    monkeypatch.setattr(iapc, "label_by_argmax", None)  # would raise
    before = state(run / "last.ckpt")
    assert sfda("fit", "--run", run) == 0
    after = state(run / "last.ckpt")
    assert not torch.equal(before["network.network.classifier.weight"], after["network.network.classifier.weight"])
    for name, value in part(state(source_model), "network.").items():
        assert torch.equal(after[f"source.module.{name}"], value)


@pytest.mark.medium
def test_two_processes_hold_the_same_three_networks(town, source_model, sfda, tmp_path, states_of_ranks):
    arguments = arguments_of(town, source_model, prototypes="momentum")
    arguments += ["--data.init_args.batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", STRATEGY]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    one, other = states_of_ranks()
    saved = state(tmp_path / "run/last.ckpt")
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert torch.equal(value, saved[name]), name
    assert len(list((tmp_path / "run/pseudo_labels/labels").glob("*.png"))) == 16
