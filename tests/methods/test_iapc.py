"""IAPC: every term of its loss by loops, its options, its optimizer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfda.errors import UserError
from sfda.methods.iapc import IAPC
from sfda.runs.experiment import experiments_of, resolve
from tiny_runs import NETWORK

CLASSES = 4


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
    labels = target["pseudo_label"]
    labels[labels == 3] = 1  # absent
    rare = labels.new_zeros(labels.shape).bool()
    rare[:, 2:4, 2:6] = True
    labels[(labels == 2) & ~rare] = 0
    labels[rare] = 2  # 16 pixels: fewer than the 24 that are enough in images this small
    torch.manual_seed(1)
    losses = method.compute_losses({"target": target})
    expected = loop_losses(method, target, prototypes, importance, rare_weight)
    assert losses.keys() == expected.keys()
    assert method.absence.tolist() == pytest.approx([1, 1, 1, 0.9 + 0.1 * rare_weight])
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
    assert IAPC(network=NETWORK, num_classes=3).layer == "backbone@16"


def test_elsewhere_it_is_the_last_map_of_the_encoder_with_sixteen_pixels_per_cell():
    method = IAPC(network="smp:Segformer/mit_b0", num_classes=3)
    assert (method.layer, method.feature_channels) == ("backbone@16", 160)  # of strides 4, 8, 16 and 32
    images = torch.rand(1, 3, 70, 90)  # padded to 96x96
    with torch.no_grad():
        features = method.network(images, features=method.layer)[1]
        padded = torch.nn.functional.pad(
            (images - method.network.mean) / method.network.std, (0, 6, 0, 26), "replicate"
        )
        assert torch.equal(features, method.network.network.encoder(padded)[-2])


@pytest.mark.parametrize(("layer", "why"), [("layer7", "no module"), ("block1.0.attn.norm", "gives no map")])
def test_a_layer_that_is_not_there_or_has_no_map_is_refused_with_the_stages(layer, why):
    stages = r"norm3 \(160 channels, 1/16\), norm4 \(256 channels, 1/32\)"
    with pytest.raises(UserError, match=f"{layer}.*{why}.*take backbone, backbone@16 or.*{stages}"):
        IAPC(network="smp:Segformer/mit_b0", num_classes=3, layer=layer)


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


PUBLISHED = [
    name for benchmark in ("gta5", "synthia") for name in experiments_of(f"{benchmark}_to_cityscapes") if "iapc" in name
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_label_and_test_at_the_authors_size_and_train_at_theirs(name):
    data = resolve(name).config["data"]["init_args"]
    assert data["size"] == [512, 1024]
    assert data["crop"] == [256, 512]
    widths = [scale * data["size"][1] for scale in data["scale"]]
    assert widths == [0.8 * 1280, 1.2 * 1280]
