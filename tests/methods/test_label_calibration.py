import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.errors import UserError
from sfda.methods.label_calibration import LabelCalibration
from tiny_runs import NETWORK, tiny_arguments

NAMES = CITYSCAPES19.names


def read(town, split):
    """Images (N, 3, H, W) and labels (N, H, W) of the target, in order."""
    samples = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), split, True, CITYSCAPES19)
    pairs = [samples.read(i) for i in range(len(samples))]
    images = np.stack([pair.image for pair in pairs]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images).float() / 255, np.stack([pair.label for pair in pairs])


def source_probabilities(source_model, images):
    """Vectors (N, C) of all pixels under the source network alone."""
    method = LabelCalibration(network=NETWORK, num_classes=19, source_checkpoint=str(source_model)).eval()
    method.initialise_from_source()
    with torch.no_grad():
        return method(images).double().softmax(1).permute(0, 2, 3, 1).flatten(0, 2).numpy()


def prototypes_of(pixels, weights):
    """Means by predicted class, (C, C)."""
    prototypes, predicted = np.eye(pixels.shape[1]), pixels.argmax(1)
    for c in set(predicted):
        prototypes[c] = np.average(pixels[predicted == c], axis=0, weights=weights[predicted == c])
    return prototypes


def mean_iou(predictions, labels):
    scored = labels != 255
    ious = []
    for c in range(19):
        either = ((predictions == c) | (labels == c)) & scored
        if either.any():
            ious.append(((predictions == c) & (labels == c))[scored].sum() / either.sum())
    return np.mean(ious)


def fit(sfda, town, source_model, folder, *more):
    arguments = [*tiny_arguments("label_calibration", town, source_model), "--data.init_args.samples_per_epoch", 16]
    assert sfda("fit", *arguments, "--out", folder, *more) == 0
    return json.loads((folder / "label_calibration.json").read_text())


@pytest.mark.medium
@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_a_fit_is_one_pass_over_the_target(gamma, town, source_model, sfda, tmp_path):
    report = fit(sfda, town, source_model, tmp_path / "run", "--model.init_args.gamma", gamma)
    images, _ = read(town, "train")
    pixels = source_probabilities(source_model, images)
    prototypes = prototypes_of(pixels, pixels.max(1) ** gamma)
    method = LabelCalibration.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    np.testing.assert_allclose(method.head.prototypes, prototypes, atol=1e-5)

    with torch.no_grad():
        calibrated = method.predict_probabilities(images)
    squared = ((pixels[:, None] - prototypes) ** 2).sum(2)
    chosen = squared[np.arange(len(squared)), calibrated.argmax(1).flatten().numpy()]
    np.testing.assert_allclose(chosen, squared.min(1), atol=1e-5)
    assert (squared.argmin(1) != pixels.argmax(1)).any()
    assert calibrated.amax(1).mean().item() == pytest.approx(pixels.max(1).mean(), abs=1e-4)

    counts = np.bincount(pixels.argmax(1), minlength=19)
    assert report["pixels"] == dict(zip(NAMES, counts.tolist(), strict=True))
    assert report["absent_classes"] == [name for name, count in zip(NAMES, counts, strict=True) if count == 0]
    assert list(report["prototype_diagonal"].values()) == pytest.approx(prototypes.diagonal(), abs=1e-5)
    assert report["temperature"] == pytest.approx(method.head.temperature)
    assert report["gamma"] == gamma
    assert set(report["seconds"]) == {"forward", "prototypes", "prediction"}
    assert all(seconds > 0 for seconds in report["seconds"].values())
    assert (tmp_path / "run/label_calibration_prototypes.png").stat().st_size > 0

    source = torch.load(source_model, weights_only=True)["state_dict"]
    state = torch.load(tmp_path / "run/selected.ckpt", weights_only=True)["state_dict"]
    assert set(state) == set(source) | {"head.conv.weight", "head.conv.bias"}
    assert all(torch.equal(state[key], source[key]) for key in source)


@pytest.mark.medium
def test_views_act_before_the_head(town, source_model, sfda, tmp_path):
    fit(sfda, town, source_model, tmp_path / "run", "--model.init_args.views", "multi_scale")
    method = LabelCalibration.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    images, _ = read(town, "train")
    with torch.no_grad():
        pixels = method.view_probabilities(images, (32, 64)).double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    np.testing.assert_allclose(method.head.prototypes, prototypes_of(pixels, pixels.max(1)), atol=1e-5)


@pytest.mark.medium
def test_images_none_of_which_can_be_read_are_refused(town, source_model, sfda, tmp_path, capsys):
    shutil.copytree(town, tmp_path / "town")
    for image in (tmp_path / "town/cityscapes/leftImg8bit/train").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:-40])
    arguments = tiny_arguments("label_calibration", tmp_path / "town", source_model)
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "no target training image could be read" in capsys.readouterr().err
    assert not (tmp_path / "run/result.json").exists()


# --------------------------------------------------------------------- online


def follow(batches, **options):
    """A method that has followed a stream of probabilities (B, 3, H, W), which stand for images."""
    method = LabelCalibration(network=NETWORK, num_classes=3, online=True, **options)
    method.view_probabilities = lambda images, size: images
    for batch in batches:
        method.adapt_online(batch)
    return method.head


def stream(batches, *, likeliest=0.9, seed=0):
    """Batches in which the likeliest class has the probability `likeliest`, and the next one most of the rest."""
    vector = torch.tensor([likeliest, 0.9 * (1 - likeliest), 0.1 * (1 - likeliest)])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        shifts = torch.randint(0, 3, (2, 6, 7), generator=generator)
        yield torch.stack([vector[(c - shifts) % 3] for c in range(3)], dim=1)


def flat(batches):
    return torch.cat([batch.permute(0, 2, 3, 1).flatten(0, 2) for batch in batches]).double().numpy()


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_online_equals_one_pass_when_nothing_is_forgotten(gamma):
    batches = [torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(i)).softmax(1) for i in range(5)]
    pixels = flat(batches)
    np.testing.assert_allclose(
        follow(batches, gamma=gamma).prototypes, prototypes_of(pixels, pixels.max(1) ** gamma), atol=1e-6
    )


@pytest.mark.parametrize("forgetting", [0.1, 1.0])
def test_forgetting_weights_batches_by_their_age(forgetting):
    batches = [torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(i)).softmax(1) for i in range(5)]
    pixels = flat(batches)
    age = np.repeat([4, 3, 2, 1, 0], len(pixels) // 5)
    weights = pixels.max(1) * (1.0 - forgetting) ** age
    got = follow(batches, forgetting=forgetting).prototypes
    np.testing.assert_allclose(got, prototypes_of(pixels, weights), atol=1e-6)


def test_prototypes_follow_a_target_that_drifts():
    drift = [*stream(40, likeliest=0.95), *stream(40, likeliest=0.6)]
    forgetful, faithful = follow(drift, forgetting=0.2), follow(drift)
    np.testing.assert_allclose(forgetful.prototypes.diagonal(), 0.6, atol=0.01)
    assert (faithful.prototypes.diagonal() > 0.7).all()


def test_the_temperature_is_that_of_the_last_batch():
    *before, last = [torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(i)).softmax(1) for i in range(5)]
    head = follow([*(batch**3 / (batch**3).sum(1, keepdim=True) for batch in before), last])
    confidence = head(last).amax(1).mean().item()
    assert confidence == pytest.approx(last.amax(1).mean().item(), abs=1e-4)


def test_a_network_that_predicts_nan_is_refused():
    batches = [*stream(1), torch.full((2, 3, 6, 7), float("nan"))]
    with pytest.raises(UserError, match="NaN"):
        follow(batches)


@pytest.mark.medium
def test_online_predicts_a_batch_before_it_learns_from_it(town, source_model, sfda, tmp_path):
    images, labels = read(town, "val")
    plain = LabelCalibration(network=NETWORK, num_classes=19, source_checkpoint=str(source_model), online=True).eval()
    plain.initialise_from_source()
    predictions = []
    with torch.no_grad():
        for image in images:
            predictions.append(plain.predict_probabilities(image[None])[0].argmax(0).numpy())
            plain.adapt_online(image[None])
    by_image = [*tiny_arguments("label_calibration", town, source_model), "--model.init_args.online", "true"]
    assert sfda("validate", *by_image, "--data.init_args.val_batch_size", 1, "--out", tmp_path / "online") == 0
    row = json.loads((tmp_path / "online/result.json").read_text())
    assert row["target_miou"] == pytest.approx(mean_iou(np.stack(predictions), labels), abs=1e-6)
    report = json.loads((tmp_path / "online/label_calibration.json").read_text())
    assert sum(report["pixels"].values()) == images[:, 0].numel()
    assert list(report["prototype_diagonal"].values()) == pytest.approx(plain.head.prototypes.diagonal().tolist())

    # In one batch everything is predicted before anything is learnt.
    assert sfda("validate", *by_image, "--data.init_args.val_batch_size", 6, "--out", tmp_path / "whole") == 0
    source_only = tiny_arguments("source_only", town, source_model)
    assert sfda("validate", *source_only, "--out", tmp_path / "source_only") == 0
    scores = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "source_only")]
    assert scores[0]["target_miou"] == scores[1]["target_miou"] != row["target_miou"]


@pytest.mark.medium
def test_online_every_batch_passes_the_network_once(town, source_model, sfda, tmp_path, monkeypatch):
    passes = []
    predict = LabelCalibration.view_probabilities
    monkeypatch.setattr(
        LabelCalibration,
        "view_probabilities",
        lambda self, images, size: passes.append(1) or predict(self, images, size),
    )
    arguments = [*tiny_arguments("label_calibration", town, source_model), "--model.init_args.online", "true"]
    assert sfda("validate", *arguments, "--data.init_args.val_batch_size", 1, "--out", tmp_path / "online") == 0
    assert len(passes) == 12  # six images of each domain
    report = json.loads((tmp_path / "online/label_calibration.json").read_text())
    assert all(seconds > 0 for seconds in report["seconds"].values())


def test_a_run_that_is_not_online_learns_nothing_from_validation():
    method = LabelCalibration(network=NETWORK, num_classes=3).eval()
    before = method.head.prototypes
    method.adapt_online(torch.rand(1, 3, 16, 16))
    assert torch.equal(method.head.prototypes, before)


@pytest.mark.medium
def test_an_online_fit_is_refused(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("label_calibration", town, source_model), "--model.init_args.online", "true"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "sfda validate" in capsys.readouterr().err


def test_online_with_several_processes_is_refused():
    method = LabelCalibration(network=NETWORK, num_classes=3, online=True)
    method._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match="one process"):
        method.setup("validate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"online": True, "forgetting": 1.5}, "0 to 1"),
        ({"forgetting": 0.1}, "online only"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LabelCalibration(network=NETWORK, num_classes=3, **options)
