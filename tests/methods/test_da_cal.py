import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from sfda.errors import UserError
from sfda.losses.soft_cross_entropy import one_hot
from sfda.methods.da_cal import DACal, MetaBatch
from sfda.methods.da_cal_source_free import DACalSourceFree
from sfda.methods.mean_teacher import MeanTeacher
from sfda.methods.mean_teacher_source_free import MeanTeacherSourceFree
from sfda.networks.segmenter import BACKBONE, HEAD_INPUT
from tiny_runs import NETWORK

CLASSES = 4
BOTH = pytest.mark.parametrize("method_class", [DACal, DACalSourceFree])
BASE = {DACal: MeanTeacher, DACalSourceFree: MeanTeacherSourceFree}
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def random_batch(method_class, seed=0, images=3, size=(8, 12), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    for domain in ("source", "target"):
        image, strong = torch.rand(2, images, 3, *size, generator=generator, dtype=dtype)
        valid = torch.rand(images, *size, generator=generator) > 0.2
        batch[domain] = {"name": ["?"] * images, "image": image, "strong": strong, "valid": valid}
    labels = torch.randint(0, CLASSES, (images, *size), generator=generator)
    batch["source"]["label"] = labels.where(batch["source"]["valid"], 255)
    return batch if method_class is DACal else {"target": batch["target"]}


def make(method_class, **options):
    """A method whose networks all differ and are sure of some pixels."""
    torch.manual_seed(0)
    method = method_class(network=NETWORK, num_classes=CLASSES, **{"threshold": 0.7, **options})
    for name, module in method.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name != "temperature.last":
            torch.nn.init.normal_(module.weight, std=0.5)
    return method.train()


def randomise_temperatures(method, scale=0.3):
    generator = torch.Generator().manual_seed(0)
    for parameter in method.temperature.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))


def meta_batch(method, batch) -> MetaBatch:
    """The one that `compute_losses` builds; temperatures stay as they are."""
    seen = []
    method.improve_temperatures = lambda meta: seen.append(meta) or torch.zeros(())
    torch.manual_seed(5)
    method.compute_losses(batch)
    del method.improve_temperatures
    return seen[0]


def weighted_meta_batch(method_class, **options):
    """A method in float64 with temperatures away from 1, and a meta-batch that its temperatures matter in."""
    method = make(method_class, virtual_lr=0.5, **options).double()
    randomise_temperatures(method)
    meta = meta_batch(method, random_batch(method_class, dtype=torch.float64))
    assert 0.05 < meta.mix.weight[~meta.mix.pasted].min() < 1
    assert (meta.labels != 255).any()
    assert method.temperature.from_logits.out_channels == options.get("hidden", 32)
    assert meta.inner.dtype == meta.outer.dtype == meta.logits.dtype == torch.float64
    return method, meta


# --------------------------------------------------------------------- the meta-gradient


@BOTH
def test_meta_gradient_against_finite_differences(method_class):
    method, meta = weighted_meta_batch(method_class, hidden=3)
    names = [name for name, _ in method.temperature.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in method.temperature.parameters()]

    def loss(*psi):
        return method.outer_loss(meta, dict(zip(names, psi, strict=True)))

    assert torch.autograd.gradcheck(loss, values, eps=1e-5, atol=1e-7, rtol=1e-4)
    gradients = torch.autograd.grad(loss(*values), values)
    # as large as what the check looks at: it would not pass with zeros
    assert all(gradient.abs().max() > 1e-5 for gradient in gradients)


@BOTH
def test_the_virtual_step_is_a_step_of_gradient_descent_on_the_head(method_class):
    method, meta = weighted_meta_batch(method_class)
    with torch.no_grad():
        temperatures = method.temperature(meta.features, meta.logits)
        labels = (meta.logits / temperatures).softmax(1)
        donors = labels[[1, 2, 0]] if method_class is DACalSourceFree else one_hot(meta.mix.donors.classes, CLASSES)
        targets = torch.where(meta.mix.pasted[:, None], donors.double(), labels)
    head = copy.deepcopy(method.network.head)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)

    def logits(head_input):
        return F.interpolate(head(head_input), (8, 12), mode="bilinear", align_corners=False)

    pixels = -meta.mix.weight * (targets * logits(meta.inner).log_softmax(1)).sum(1)
    pixels[meta.mix.valid].mean().backward()
    optimizer.step()
    expected = F.cross_entropy(logits(meta.outer), meta.labels, ignore_index=255)
    psi = dict(method.temperature.named_parameters())
    torch.testing.assert_close(method.outer_loss(meta, psi), expected)


@BOTH
def test_improving_the_temperatures_lowers_the_loss_behind_the_virtual_step(method_class):
    method = make(method_class, temperature_lr=1e-3, virtual_lr=0.5)
    meta = meta_batch(method, random_batch(method_class))
    losses = [method.improve_temperatures(meta).item() for _ in range(50)]
    assert losses[-1] < losses[0] - 1e-4
    temperatures = method.temperature(meta.features, meta.logits)
    assert (temperatures - 1).abs().max() > 0.1
    assert (temperatures >= 0.05).all()
    assert (temperatures <= 20).all()


def test_an_overconfident_teacher_is_cooled_down():
    """The teacher is sure of a class that the labels of the same kind of pixel contradict: T grows."""
    method = make(DACal, temperature_lr=0.05, virtual_lr=0.01)
    meta = meta_batch(method, random_batch(DACal))
    wrong = 8 * one_hot(torch.zeros(3, 8, 12, dtype=torch.long), CLASSES)
    mix = meta.mix._replace(pasted=torch.zeros_like(meta.mix.pasted), weight=torch.ones_like(meta.mix.weight))
    meta = meta._replace(logits=wrong, mix=mix, outer=meta.inner, labels=torch.randint(1, CLASSES, (3, 8, 12)))
    for _ in range(5):
        method.improve_temperatures(meta)
    assert (method.temperature(meta.features, meta.logits) > 2).all()


@BOTH
def test_nothing_labelled_is_a_zero_meta_gradient(method_class):
    method = make(method_class)
    meta = meta_batch(method, random_batch(method_class))
    before = copy.deepcopy(method.temperature.state_dict())
    assert method.improve_temperatures(meta._replace(labels=torch.full_like(meta.labels, 255))) == 0
    assert all(torch.equal(value, before[key]) for key, value in method.temperature.state_dict().items())


def test_outer_labels_are_the_other_half_of_the_source_classes():
    method = make(DACal)
    batch = random_batch(DACal)
    meta = meta_batch(method, batch)
    labels = batch["source"]["label"]
    shown = (meta.mix.images == batch["source"]["strong"]).all(1)
    assert torch.equal(meta.labels, labels.where((labels != 255) & ~shown, 255))


def test_source_free_outer_labels_are_the_source_models_where_it_is_sure():
    method = make(DACalSourceFree, threshold=0.6)
    batch = random_batch(DACalSourceFree)
    target = batch["target"]
    meta = meta_batch(method, batch)
    source = method.source(target["image"]).softmax(1)
    teacher = method.teacher(target["image"]).argmax(1)
    for i in range(3):
        donor = (i + 1) % 3
        shown = (meta.mix.images[i] == target["strong"][donor]).all(0)
        for y, x in itertools.product(range(8), range(12)):
            vector = source[donor, :, y, x]
            other_half = target["valid"][donor, y, x] and not shown[y, x]
            assert bool(meta.mix.rest[i, y, x]) == bool(other_half)
            expected = vector.argmax() if other_half and vector.max() >= 0.6 else 255
            assert meta.labels[i, y, x] == expected
    assert (teacher != source.argmax(1)).any()
    assert 0 < (meta.labels != 255).double().mean() < 1


@BOTH
def test_the_complementary_mix_is_what_the_outer_pass_sees(method_class):
    method = make(method_class).eval()  # no dropout, and BN does not depend on the batch
    batch = random_batch(method_class)
    meta = meta_batch(method, batch)
    images = torch.where(meta.mix.rest[:, None], meta.mix.donors.images, batch["target"]["strong"])
    with torch.no_grad():
        torch.testing.assert_close(meta.outer, method.network(images, HEAD_INPUT)[1])
        torch.testing.assert_close(meta.inner, method.network(meta.mix.images, HEAD_INPUT)[1])
        logits, features = method.teacher(batch["target"]["image"], BACKBONE)
    assert torch.equal(meta.logits, logits)
    assert torch.equal(meta.features, features)


# --------------------------------------------------------------------- beside the mean teacher


@BOTH
def test_at_its_start_it_is_the_mean_teacher_with_soft_labels(method_class):
    """Bit by bit: losses, gradients, BN statistics."""
    batch = random_batch(method_class)
    method, plain = make(method_class, temperature_lr=0.0), make(BASE[method_class], labels="soft")
    plain.load_state_dict({key: value for key, value in method.state_dict().items() if key in plain.state_dict()})
    results = []
    for one in (method, plain):
        torch.manual_seed(3)
        losses = one.compute_losses(batch)
        sum(losses.values()).backward()
        results.append((losses, dict(one.network.named_parameters()), dict(one.network.named_buffers())))
    (losses, parameters, buffers), (plain_losses, plain_parameters, plain_buffers) = results
    assert losses.keys() == plain_losses.keys()
    assert all(torch.equal(losses[key], plain_losses[key]) for key in losses)
    assert all(torch.equal(value.grad, plain_parameters[key].grad) for key, value in parameters.items())
    assert all(torch.equal(value, plain_buffers[key]) for key, value in buffers.items())
    counts = [value.item() for key, value in buffers.items() if key.endswith("num_batches_tracked")]
    assert counts == [1, 1]


@BOTH
def test_the_real_step_takes_labels_of_the_new_temperatures(method_class):
    method, batch = make(method_class, temperature_lr=0.5, virtual_lr=0.5), random_batch(method_class)
    meta, before = meta_batch(method, batch), copy.deepcopy(method.temperature)
    seen = []
    method.student_losses = lambda logits, batch, mix, probabilities: seen.append(probabilities)
    torch.manual_seed(5)
    method.compute_losses(batch)
    with torch.no_grad():
        old, new = ((meta.logits / net(meta.features, meta.logits)).softmax(1) for net in (before, method.temperature))
    assert torch.equal(seen[0], new)
    assert (new - old).abs().max() > 0.01
    assert not seen[0].requires_grad


@BOTH
def test_only_the_student_gets_a_gradient(method_class):
    method = make(method_class)
    temperatures = copy.deepcopy(method.temperature.state_dict())
    sum(method.compute_losses(random_batch(method_class)).values()).backward()
    trained = {id(parameter) for parameter in method.network.parameters()}
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
    assert any((value != temperatures[key]).any() for key, value in method.temperature.state_dict().items())


@BOTH
def test_half_precision_has_a_float32_meta_gradient(method_class):
    """The gradient of a step under autocast is the one that its meta-batch has without."""
    method, batch = make(method_class, virtual_lr=0.5), random_batch(method_class)
    randomise_temperatures(method)
    with torch.autocast("cpu", torch.bfloat16):
        meta = meta_batch(method, batch)
        psi = {name: value.clone().requires_grad_() for name, value in method.temperature.named_parameters()}
        torch.manual_seed(5)
        method.compute_losses(batch)
    assert {value.dtype for value in (meta.features, meta.logits, meta.inner, meta.outer)} == {torch.float32}
    expected = torch.autograd.grad(method.outer_loss(meta, psi), list(psi.values()))
    moments = method.temperature_optimizer.state_dict()["state"]
    for i, gradient in enumerate(expected):
        assert torch.equal(moments[i]["exp_avg"], 0.1 * gradient)
        assert gradient.abs().max() > 0


@BOTH
def test_prediction_is_the_students_alone(method_class):
    method = make(method_class).eval()
    images = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        expected = method.network(images).softmax(1)
        del method.temperature, method.teacher
        assert torch.equal(method.predict_probabilities(images), expected)


@pytest.mark.parametrize(("option", "value"), [("temperature_lr", -1.0), ("virtual_lr", -1.0), ("hidden", 0)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(UserError, match=option):
        DACal(network=NETWORK, num_classes=2, **{option: value})


def test_temperatures_of_a_network_that_pads_know_by_how_much():
    assert DACal(network="smp:DeepLabV3Plus/mobilenet_v2", num_classes=2).temperature.multiple == 16
