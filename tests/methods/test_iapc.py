"""IAPC end to end: every term of its loss by loops, three networks, an EMA, labels made once."""

import shutil

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfda.cli import main
from sfda.data.transforms import RandomViews
from sfda.errors import UserError
from sfda.methods import iapc
from sfda.methods.iapc import IAPC
from tiny_runs import NETWORK, tiny_arguments

CLASSES = 4
# DDP would hide differences between the ranks' buffers.
STRATEGY = """{class_path: lightning.pytorch.strategies.DDPStrategy,
               init_args: {start_method: fork, broadcast_buffers: false}}"""


class FakeTrainer:
    world_size = 1
    estimated_stepping_batches = 100


def make_method(**options):
    """Three different tiny networks, and BN statistics that are not those of the start."""
    torch.manual_seed(0)
    method = IAPC(network=NETWORK, num_classes=CLASSES, **options)
    for module in (method.network, method.source.module, method.memory.module):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    method._trainer = FakeTrainer()
    return method.train()


def make_batch(height=16, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (2, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    valid = torch.ones(labels.shape, dtype=torch.bool)
    valid[0, :, -5:] = valid[1, -3:] = False
    return {
        "name": ["a", "b"],
        "image": torch.rand(2, 3, height, width, generator=generator),
        "strong": torch.rand(2, 3, height, width, generator=generator),
        "valid": valid,
        "pseudo_label": labels,
    }


def loop_losses(method, target, prototypes_of="image", importance="ratio", rare_weight=7.0):
    """Every term from the three networks' outputs, a pixel at a time and straight from the formulas."""
    with torch.no_grad():
        torch.manual_seed(1)  # the dropout of the network that trains
        g, f = (t.double().numpy() for t in method.network.forward_features(target["strong"], "backbone"))
        s = method.source.module(target["image"]).double().softmax(1).numpy()
        m, q = (t.double().numpy() for t in method.memory.module.forward_features(target["image"], "backbone"))
    valid = target["valid"].numpy()
    labels = np.where(valid, target["pseudo_label"].numpy(), 255)
    batch, height, width = valid.shape
    h, w = f.shape[2:]

    weights = []
    for c in range(CLASSES):
        pixels = (labels == c).sum()
        rare = rare_weight if pixels < 64 * 64 * batch * (height * width) / (256 * 512) else 1
        weights.append(rare * (0.9 * 1 + 0.1 * (rare_weight if pixels == 0 else 1)))

    rows = {}
    for b in range(batch):
        for y, x in np.ndindex(h, w):
            row, column = y * height // h, x * width // w
            if valid[b, row, column]:
                owner = b if prototypes_of == "image" else 0
                rows.setdefault((owner, m[b, :, row, column].argmax()), []).append(q[b, :, y, x])
    prototypes = {key: np.mean(found, axis=0) for key, found in rows.items()}

    cosines = np.zeros((batch, CLASSES, h, w))
    nearest = np.zeros((batch, h, w), dtype=int)
    present = np.zeros((batch, CLASSES), dtype=bool)
    for b in range(batch):
        of_image = {c: p for (owner, c), p in prototypes.items() if owner == (b if prototypes_of == "image" else 0)}
        present[b, list(of_image)] = True
        for y, x in np.ndindex(h, w):
            for c, p in of_image.items():
                norms = np.linalg.norm(p) * max(np.linalg.norm(f[b, :, y, x]), 1e-6)
                cosines[b, c, y, x] = p @ f[b, :, y, x] / norms
            nearest[b, y, x] = max(of_image, key=lambda c: cosines[b, c, y, x])
    enlarged = F.interpolate(torch.from_numpy(cosines), (height, width), mode="bilinear").numpy()

    ia, pe, entropy, first, second = [], [], [], [], []
    for b, y, x in zip(*np.nonzero(valid), strict=True):
        z, label = g[b, :, y, x], labels[b, y, x]
        log_p = z - np.log(np.exp(z).sum())
        ce = 0.0 if label == 255 else -weights[label] * log_p[label]
        top, runner_up = sorted(s[b, :, y, x], reverse=True)[:2]
        proto = nearest[b, y * h // height, x * w // width]
        omega = {"ratio": 1 - runner_up / top, "difference": top - runner_up, "top1": top}[importance]
        ia.append(omega * ce)
        pe.append(ce if proto == label else 0.0)
        entropy.append(-(np.exp(log_p) * log_p).sum())
        first.append(-log_p[proto])
        if present[b, z.argmax()]:
            e = np.exp(enlarged[b, :, y, x]) * present[b]
            second.append(-np.log(e[z.argmax()] / e.sum()))
    return {
        "importance": 0.2 * np.mean(ia),
        "prototype_enhanced": 0.5 * np.mean(pe),
        "prototype_symmetric": 0.04 * (np.mean(first) + np.mean(second)),
        "entropy": 2.0 * np.mean(entropy),
    }


@pytest.mark.parametrize(
    ("prototypes", "importance", "rare_weight"),
    [("image", "ratio", 7.0), ("momentum", "ratio", 7.0), ("image", "difference", 3.0), ("image", "top1", 1.0)],
)
def test_losses_against_loops(prototypes, importance, rare_weight):
    """In the first batch, prototypes that follow the batches are those of the whole batch."""
    method = make_method(prototypes=prototypes, importance=importance, rare_weight=rare_weight)
    target = make_batch()
    target["pseudo_label"][target["pseudo_label"] == 3] = 1  # 1 is no rare class then, and 3 is absent
    torch.manual_seed(1)
    losses = method.compute_losses({"target": target})
    expected = loop_losses(method, target, prototypes, importance, rare_weight)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert value > 0
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    assert losses["importance"].item() != pytest.approx(losses["prototype_enhanced"].item() * 0.4)


def test_padding_and_unlabelled_pixels_are_two_things():
    """What is under the padding changes nothing; what is not labelled still counts for entropy and prototypes."""
    method, target = make_method(), make_batch()
    target["pseudo_label"][target["pseudo_label"] == 3] = 255
    changed = {**target, "pseudo_label": torch.where(target["valid"], target["pseudo_label"], 3)}  # else absent
    none = {**target, "pseudo_label": torch.full_like(target["pseudo_label"], 255)}

    def losses(batch):
        torch.manual_seed(1)
        method.absence.fill_(1)
        values = {name: loss.item() for name, loss in method.compute_losses({"target": batch}).items()}
        return values | {"absence": method.absence.tolist()}

    assert losses(changed) == losses(target)
    assert losses(changed)["absence"] == pytest.approx([1, 1, 1, 1.6])
    unlabelled = losses(none)
    assert unlabelled["importance"] == unlabelled["prototype_enhanced"] == 0
    assert unlabelled["entropy"] == losses(target)["entropy"] > 0
    assert unlabelled["prototype_symmetric"] == losses(target)["prototype_symmetric"] > 0


def test_a_batch_of_padding_alone_is_zero_with_finite_gradients():
    method, target = make_method(), make_batch()
    losses = method.compute_losses({"target": {**target, "valid": torch.zeros_like(target["valid"])}})
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0, 0, 0]
    assert all(parameter.grad.isfinite().all() for parameter in method.network.parameters())


def test_only_the_network_that_trains_gets_gradients():
    method = make_method()
    sum(method.compute_losses({"target": make_batch()}).values()).backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())
    frozen = [*method.source.parameters(), *method.memory.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert not any(module.training for part in (method.source, method.memory) for module in part.modules())
    assert all(module.training for module in method.network.modules())


@pytest.mark.parametrize(
    ("options", "terms", "unused"),
    [
        ({"enhanced_weight": 0.0, "symmetric_weight": 0.0}, {"importance", "entropy"}, "memory"),
        ({"importance_weight": 0.0}, {"prototype_enhanced", "prototype_symmetric", "entropy"}, "source"),
    ],
)
def test_an_ablated_term_costs_nothing(options, terms, unused):
    method = make_method(**options)
    getattr(method, unused).forward = None  # would raise
    assert method.compute_losses({"target": make_batch()}).keys() == terms


def test_a_network_that_pads_sees_features_and_labels_of_one_extent():
    """A crop that is no multiple: as the same crop, padded by hand, with the margin invalid."""
    method = make_method()
    method.network.multiple = method.source.module.multiple = method.memory.module.multiple = 8
    target = make_batch(13, 18)
    by_hand = {
        **{key: F.pad(target[key], (0, 6, 0, 3), mode="replicate") for key in ("image", "strong")},
        "valid": F.pad(target["valid"], (0, 6, 0, 3)),
        "pseudo_label": F.pad(target["pseudo_label"], (0, 6, 0, 3), value=2),  # the margin's labels are not looked at
    }
    torch.manual_seed(1)
    losses = method.compute_losses({"target": target})
    for name, value in loop_losses(method, by_hand).items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


def test_prototypes_follow_the_batches_and_absence_too():
    method = make_method(prototypes="momentum", prototype_momentum=0.9)
    one, other = make_batch(seed=0), make_batch(seed=1)
    other["pseudo_label"][other["pseudo_label"] == 3] = 255
    for batch in (one, other):
        before = method.memory_prototypes.clone()
        method.compute_losses({"target": batch})
    assert method.absence.tolist() == pytest.approx([1, 1, 1, 0.9 + 0.7])
    assert "absence" in method.state_dict()
    fresh = make_method(prototypes="momentum", prototype_momentum=0.9)
    fresh.compute_losses({"target": other})
    seen = before.any(1) & fresh.memory_prototypes.any(1)
    assert seen.any()
    expected = 0.9 * before + 0.1 * fresh.memory_prototypes
    torch.testing.assert_close(method.memory_prototypes[seen], expected[seen])


# ---------------------------------------------------------------------- the optimizer


def test_batch_norm_scales_do_not_train_and_the_head_learns_ten_times_as_fast():
    method = make_method(lr=0.5)
    groups = {group["name"]: group for group in method.trainable_parameters()}
    by_id = {id(p): name for name, p in method.network.named_parameters()}
    head = {by_id[id(p)] for p in groups["head"]["params"]}
    rest = {by_id[id(p)] for p in groups["network"]["params"]}
    assert head == {"network.classifier.weight", "network.classifier.bias"}
    assert rest == {"network.backbone.0.weight", "network.backbone.3.weight"}
    optimizer = method.configure_optimizers()["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


def test_the_decay_is_laid_out_for_more_steps_than_are_taken():
    method = make_method(warmup_steps=10, poly_steps=200, poly_power=0.9)
    for step in range(250):
        rise = min(1.0, 0.1 + 0.09 * step)
        assert method.lr_factor(step) == pytest.approx(rise * max(0.0, 1 - step / 200) ** 0.9)
    method.poly_steps = None  # the run's own
    assert method.lr_factor(50) == pytest.approx(0.5**0.9)


def test_the_layer_is_layer3_where_there_is_one():
    assert IAPC(network="deeplab_v2_resnet18", num_classes=3).layer == "layer3"
    assert IAPC(network=NETWORK, num_classes=3).layer == "backbone"
    with pytest.raises(UserError, match="layer7"):
        IAPC(network=NETWORK, num_classes=3, layer="layer7")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("memory_momentum", 1.5),
        ("prototype_momentum", 1.5),
        ("importance_weight", -0.1),
        ("enhanced_weight", -0.1),
        ("symmetric_weight", -0.1),
        ("entropy_weight", -0.1),
        ("rare_weight", -1.0),
        ("poly_steps", 0),
        ("poly_steps", -5),
    ],
)
def test_an_option_out_of_range_is_refused(option, value):
    with pytest.raises(UserError, match=option):
        IAPC(network=NETWORK, num_classes=3, **{option: value})


# ---------------------------------------------------------------------- runs


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

    class Death(RuntimeError):
        pass

    def die_in_the_second_epoch(self, trainer, *_):
        if trainer.current_epoch == 1:
            raise Death

    copied = tmp_path / "source.ckpt"
    shutil.copy(source_model, copied)
    run = tmp_path / "run"
    arguments = [*arguments_of(town, copied, prototypes="momentum"), "--trainer.max_epochs", "2", "--out", str(run)]
    with monkeypatch.context() as patch:
        patch.setattr("sfda.callbacks.skipped_files.SkippedFiles.on_train_batch_start", die_in_the_second_epoch)
        with pytest.raises(Death):
            main(["fit", *arguments])
    copied.unlink()
    monkeypatch.setattr(iapc, "label_by_argmax", None)  # would raise
    before = state(run / "last.ckpt")
    assert sfda("fit", "--run", run) == 0
    after = state(run / "last.ckpt")
    assert not torch.equal(before["network.network.classifier.weight"], after["network.network.classifier.weight"])
    for name, value in part(state(source_model), "network.").items():
        assert torch.equal(after[f"source.module.{name}"], value)


@pytest.mark.medium
def test_two_processes_hold_the_same_three_networks(town, source_model, sfda, tmp_path, monkeypatch):
    def dump(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), tmp_path / f"rank{trainer.global_rank}.pt")

    monkeypatch.setattr("sfda.callbacks.skipped_files.SkippedFiles.on_fit_end", dump)
    arguments = arguments_of(town, source_model, prototypes="momentum")
    arguments += ["--data.init_args.batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", STRATEGY]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 0
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    saved = state(tmp_path / "run/last.ckpt")
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert torch.equal(value, saved[name]), name
    assert len(list((tmp_path / "run/pseudo_labels/labels").glob("*.png"))) == 16
