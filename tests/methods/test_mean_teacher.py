import copy

import numpy as np
import pytest
import torch

from sfda.errors import UserError
from sfda.methods.mean_teacher import MeanTeacher
from sfda.methods.mean_teacher_source_free import MeanTeacherSourceFree
from tiny_runs import NETWORK, tiny_arguments

CLASSES = 5
BOTH = pytest.mark.parametrize("method_class", [MeanTeacher, MeanTeacherSourceFree])


def random_batch(seed=0, source_images=3, target_images=3, size=(12, 16)):
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    for domain, images in (("source", source_images), ("target", target_images)):
        image, strong = torch.rand(2, images, 3, *size, generator=generator)
        valid = torch.rand(images, *size, generator=generator) > 0.2
        batch[domain] = {
            "name": [f"{domain}{i}" for i in range(images)], "image": image, "strong": strong, "valid": valid
        }  # fmt: skip
    label = torch.randint(0, CLASSES, (source_images, *size), generator=generator)
    batch["source"]["label"] = label.where(batch["source"]["valid"], 255)
    return batch


def make(method_class, seed=0, **options):
    """A method in eval mode, with BN statistics and a teacher of its own, some of whose confidences are high."""
    torch.manual_seed(seed)
    method = method_class(network=NETWORK, num_classes=CLASSES, **options)
    for network in (method.network, method.teacher.module):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=0.8)
    return method.eval()


def of(method_class, batch):
    """The domains that the method reads."""
    return batch if method_class is MeanTeacher else {"target": batch["target"]}


def mixes(method, batch, seed=1):
    with torch.no_grad():
        probabilities = method.teacher(batch["target"]["image"]).softmax(1)
    torch.manual_seed(seed)
    return method.mix(batch, probabilities), probabilities


def donors_of(method_class, batch, probabilities):
    """Strong view and class map of each target image's donor, by a loop over images."""
    target, drawn = batch["target"], []
    for i in range(len(target["name"])):
        if method_class is MeanTeacher:
            source = i % len(batch["source"]["name"])
            drawn.append((batch["source"]["strong"][source], batch["source"]["label"][source]))
        else:
            other = (i + 1) % len(target["name"])
            classes = probabilities[other].argmax(0)
            classes[~target["valid"][other]] = 255
            drawn.append((target["strong"][other], classes))
    return drawn


@BOTH
@pytest.mark.parametrize("source_images", [1, 2, 3, 4])
def test_half_of_the_donors_classes_is_pasted(method_class, source_images):
    batch = random_batch(source_images=source_images)
    method = make(method_class)
    mix, probabilities = mixes(method, of(method_class, batch))
    for i, (image, classes) in enumerate(donors_of(method_class, batch, probabilities)):
        pasted = (mix.images[i] == image).all(0)
        assert torch.equal((mix.images[i] == batch["target"]["strong"][i]).all(0), ~pasted)
        chosen = set(classes[pasted].tolist())
        assert torch.equal(pasted, torch.isin(classes, torch.tensor(sorted(chosen))))
        assert 255 not in chosen
        assert len(chosen) == (len(set(classes.flatten().tolist()) - {255}) + 1) // 2


@BOTH
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_losses_against_loops(method_class, labels):
    batch = random_batch()
    method = make(method_class, threshold=0.9, labels=labels)
    mix, probabilities = mixes(method, of(method_class, batch))
    torch.manual_seed(1)
    with torch.no_grad():
        losses = method.compute_losses(of(method_class, batch))
        log_p = method.network(mix.images).double().log_softmax(1).numpy()
        log_source = method.network(batch["source"]["image"]).double().log_softmax(1).numpy()

    real = batch["target"]["valid"]
    share = (probabilities.amax(1) >= 0.9)[real].double().mean().item()
    assert 0.05 < share < 0.95
    donors = donors_of(method_class, batch, probabilities)
    terms = []
    for i, (image, classes) in enumerate(donors):
        for y, x in np.ndindex(*classes.shape):
            pasted = torch.equal(mix.images[i, :, y, x], image[:, y, x])
            if not (pasted or real[i, y, x]):
                continue
            vector = probabilities[(i + 1) % 3 if pasted else i, :, y, x].double().numpy()
            if pasted and method_class is MeanTeacher:
                vector = np.eye(CLASSES)[classes[y, x]]
            elif labels == "hard":
                vector = np.eye(CLASSES)[vector.argmax()]
            weight = 1 if pasted and method_class is MeanTeacher else share
            terms.append(-weight * vector @ log_p[i, :, y, x])
    assert losses["mix"].item() == pytest.approx(np.mean(terms), rel=1e-5)

    if method_class is MeanTeacherSourceFree:
        assert set(losses) == {"mix"}
        return
    assert set(losses) == {"mix", "ce"}
    label = batch["source"]["label"].numpy()
    expected = np.mean([-log_source[b, label[b, y, x], y, x] for b, y, x in np.argwhere(label != 255)])
    assert losses["ce"].item() == pytest.approx(expected, rel=1e-5)


@BOTH
def test_padding_takes_part_in_nothing(method_class):
    batch, method = random_batch(), make(method_class, threshold=0.9)
    torch.manual_seed(1)
    mix, probabilities = mixes(method, of(method_class, batch))
    padding = ~batch["target"]["valid"]
    other = probabilities.where(~padding[:, None], torch.eye(CLASSES)[0].view(1, -1, 1, 1))
    torch.manual_seed(1)
    changed = method.mix(of(method_class, batch), other)
    assert torch.equal(mix.images, changed.images)
    assert torch.equal(mix.weight, changed.weight)
    assert not mix.valid[padding & ~mix.pasted].any()
    logits = torch.randn(3, CLASSES, 12, 16)
    losses = [
        method.student_losses(logits, {}, mix, p)["mix"] for p in (probabilities, other)
    ]  # logits of the mixes alone: no source images
    assert torch.equal(*losses)


@BOTH
def test_nothing_valid_is_zero_with_a_gradient(method_class):
    batch, method = random_batch(), make(method_class)
    batch["target"]["valid"][:] = False
    batch["source"]["label"][:] = 255
    losses = method.compute_losses(of(method_class, batch))
    total = sum(losses.values())
    total.backward()
    assert total.item() == 0
    assert all((parameter.grad == 0).all() for parameter in method.network.parameters())


@BOTH
def test_only_the_student_gets_a_gradient_and_bn_moves_once(method_class):
    batch, method = random_batch(), make(method_class, threshold=0.5).train()
    assert not any(module.training for module in method.teacher.modules())
    teacher = copy.deepcopy(method.teacher.state_dict())
    sum(method.compute_losses(of(method_class, batch)).values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.network.parameters())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(torch.equal(value, teacher[key]) for key, value in method.teacher.state_dict().items())
    counts = [value for key, value in method.network.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts == [1, 1]


def test_teacher_is_the_moving_average_and_the_student_predicts():
    method = make(MeanTeacher, teacher_momentum=0.75)
    before = copy.deepcopy(method.teacher.module)
    with torch.no_grad():
        method.network.network.backbone[1].running_mean.add_(3)
    method.after_optimizer_step()
    student = method.network.state_dict()
    parameters = dict(before.named_parameters())
    for key, value in method.teacher.module.state_dict().items():
        expected = 0.75 * parameters[key] + 0.25 * student[key] if key in parameters else student[key]
        torch.testing.assert_close(value, expected)
    images = torch.rand(1, 3, 12, 16)
    with torch.no_grad():
        assert torch.equal(method.predict_probabilities(images), method.network(images).softmax(1))


def test_images_of_two_sizes_are_refused():
    batch = random_batch()
    batch["target"] = random_batch(size=(16, 16))["target"]
    with pytest.raises(UserError, match="crop"):
        make(MeanTeacher).compute_losses(batch)


@pytest.mark.parametrize("option", ["teacher_momentum", "threshold"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(UserError, match=option):
        MeanTeacher(network=NETWORK, num_classes=2, **{option: 1.5})


@pytest.mark.medium
@pytest.mark.parametrize("model", ["mean_teacher", "mean_teacher_source_free"])
def test_teacher_starts_from_the_source_model_and_follows_the_student(model, town, source_model, sfda, tmp_path):
    arguments = [*tiny_arguments(model, town, source_model), "--model.init_args.optimizer", "adamw"]
    arguments += ["--model.init_args.lr", "0.01", "--model.init_args.threshold", "0.05"]
    states = []
    for momentum in (1.0, 0.5):
        folder = tmp_path / str(momentum)
        assert sfda("fit", *arguments, "--model.init_args.teacher_momentum", momentum, "--out", folder) == 0
        states.append(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
    source = torch.load(source_model, weights_only=True)["state_dict"]
    for key, value in source.items():
        still, following = (state[key.replace("network.", "teacher.module.", 1)] for state in states)
        student = states[1][key]
        if "running" in key or "tracked" in key:
            assert torch.equal(following, student)
        elif key not in ("network.mean", "network.std"):
            assert torch.equal(still, value), key
            assert (value - following).abs().max() > 0, key
            assert (student - following).abs().max() < (student - value).abs().max(), key


@pytest.mark.medium
def test_two_ranks_hold_the_same_teacher(town, source_model, sfda, tmp_path, states_of_ranks):
    arguments = [*tiny_arguments("mean_teacher", town, source_model), "--model.init_args.lr", "0.05"]
    strategy = "{class_path: lightning.pytorch.strategies.DDPStrategy, "
    strategy += "init_args: {start_method: fork, broadcast_buffers: false}}"
    arguments += ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.init_args.batch_size", "2"]
    assert sfda("fit", *arguments, "--trainer.max_epochs", "2", "--out", tmp_path / "run") == 0
    one, other = states_of_ranks()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
