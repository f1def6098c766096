import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.methods.kinds.post_hoc import TEMPERATURES, fit_temperature, mean_nll, temper
from sfda.methods.source_training import SourceTraining
from sfda.methods.temperature_scaling import TemperatureScaling
from tiny_runs import tiny_arguments


def nll(scores, labels, temperature):
    """Mean over the rows of logits (N, C), by the definition."""
    scaled = scores / temperature
    return np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels])


def scipy_temperature(scores, labels):
    bounds = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: nll(scores, labels, np.exp(log_t)), bounds=bounds, method="bounded", options={"xatol": 1e-10}
    )
    return float(np.exp(found.x))


def draw(seed, pixels, classes, scale, share_right):
    """Logits (N, C) and labels, a share of them the likeliest class, the others any."""
    generator = np.random.default_rng(seed)
    scores = scale * generator.standard_normal((pixels, classes))
    labels = np.where(
        generator.random(pixels) < share_right, scores.argmax(1), generator.integers(0, classes, size=pixels)
    )
    return scores, labels


def both(scores, labels):
    return torch.from_numpy(scores), torch.from_numpy(labels)


# --------------------------------------------------------------------- the temperature


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    pixels=st.integers(1, 200),
    classes=st.integers(2, 150),
    scale=st.floats(0.01, 60),
    share_right=st.floats(0, 1),
)
def test_temperature_agrees_with_scipy(seed, pixels, classes, scale, share_right):
    scores, labels = draw(seed, pixels, classes, scale, share_right)
    got, wanted = fit_temperature(*both(scores, labels)), scipy_temperature(scores, labels)
    assert TEMPERATURES[0] <= got <= TEMPERATURES[1]
    # Where the curve is flat the place of its minimum means little, and its height all.
    assert nll(scores, labels, got) <= nll(scores, labels, wanted) + 1e-12 + 1e-9 * abs(nll(scores, labels, wanted))


@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
@pytest.mark.parametrize("classes", [2, 19, 150])
def test_temperature_is_that_of_scipy(scale, classes):
    scores, labels = draw(classes, 4000, classes, scale, 0.7)
    wanted = scipy_temperature(scores, labels)
    assert TEMPERATURES[0] * 1.1 < wanted < TEMPERATURES[1] / 1.1
    assert fit_temperature(*both(scores, labels)) == pytest.approx(wanted, rel=1e-5)
    assert mean_nll(*both(scores, labels), wanted) == pytest.approx(nll(scores, labels, wanted), rel=1e-12)


def test_temperature_does_not_depend_on_a_shift_of_the_logits():
    scores, labels = draw(0, 500, 19, 4.0, 0.6)
    shift = 100 * np.random.default_rng(1).standard_normal((500, 1))
    one, other = fit_temperature(*both(scores, labels)), fit_temperature(*both(scores + shift, labels))
    assert one == pytest.approx(other, rel=1e-9)


def test_temperature_stops_at_the_ends_of_its_range():
    scores, _ = draw(0, 500, 19, 4.0, 1.0)
    assert fit_temperature(*both(scores, scores.argmax(1))) == TEMPERATURES[0]
    assert fit_temperature(*both(scores, scores.argmin(1))) == TEMPERATURES[1]


def test_temperature_of_what_it_cannot_change_is_finite():
    flat = torch.zeros(7, 5)
    assert TEMPERATURES[0] <= fit_temperature(flat, torch.arange(7) % 5) <= TEMPERATURES[1]
    saturated = torch.full((6, 3), -87.3).scatter(1, torch.tensor([[0], [1], [2], [0], [1], [2]]), 0.0)
    assert TEMPERATURES[0] <= fit_temperature(saturated, torch.tensor([0, 1, 2, 0, 1, 0])) <= TEMPERATURES[1]


def test_two_processes_find_what_one_does(on_two_ranks):
    scores, labels = both(*draw(3, 3001, 19, 5.0, 0.7))

    def fit(rank):
        part = slice(0, 1000) if rank == 0 else slice(1000, None)
        temperature = fit_temperature(scores[part], labels[part])
        return temperature, mean_nll(scores[part], labels[part], temperature)

    one, other = on_two_ranks(fit)
    assert one == other
    assert one[0] == pytest.approx(fit_temperature(scores, labels), rel=1e-9)
    assert one[1] == pytest.approx(mean_nll(scores, labels, one[0]), rel=1e-12)


# --------------------------------------------------------------------- what it does to probabilities


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0, 20.0])
def test_tempered_probabilities_are_powers(temperature):
    probabilities = np.random.default_rng(0).dirichlet(np.full(19, 0.3), size=(2, 5, 6)).transpose(0, 3, 1, 2)
    powers = np.maximum(probabilities, np.finfo(np.float32).tiny) ** (1 / temperature)
    got = temper(torch.from_numpy(probabilities), temperature)
    np.testing.assert_allclose(got, powers / powers.sum(1, keepdims=True), rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    classes=st.integers(2, 150),
    temperature=st.floats(*TEMPERATURES),
    spread=st.sampled_from([1e-7, 1e-3, 1.0, 30.0, 1000.0]),
    half=st.booleans(),
)
def test_a_temperature_changes_no_predicted_pixel(seed, classes, temperature, spread, half):
    """From nearly tied to saturated probabilities."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (spread * torch.randn(1, classes, 8, 9, generator=generator)).softmax(1)
    if half:
        probabilities = probabilities.half()
    got = temper(probabilities, torch.tensor(temperature))
    assert got.dtype == torch.float32
    assert torch.equal(got.argmax(1), probabilities.argmax(1))
    torch.testing.assert_close(got.sum(1), torch.ones(1, 8, 9))
    assert got.min() >= 0
    assert got.max() <= 1


def test_probabilities_that_differ_in_their_last_bit_stay_in_their_order():
    low = torch.tensor(0.3)
    high = torch.nextafter(low, torch.tensor(1.0))
    probabilities = torch.stack([low, high, 1 - low - high]).view(1, 3, 1, 1)
    assert probabilities.argmax(1).item() == 2
    tied = torch.stack([low, high, low, high / 3]).view(1, 4, 1, 1)
    assert (tied.log() / 20).softmax(1).argmax(1).item() == 0  # what rounding alone makes of it
    assert temper(tied, 20.0).argmax(1).item() == 1


# --------------------------------------------------------------------- a fit


def read(town, split):
    """Images (N, 3, H, W) and labels (N, H, W) of the source, in order."""
    samples = SegmentationSet(Domain("gta5", str(town / "gta5")), split, True, CITYSCAPES19)
    pairs = [samples.read(i) for i in range(len(samples))]
    images = np.stack([pair.image for pair in pairs]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images).float() / 255, np.stack([pair.label for pair in pairs])


@pytest.fixture
def confident_model(source_model, tmp_path):
    """The source model with logits large enough for a temperature to matter."""
    checkpoint = torch.load(source_model, weights_only=True)
    for name in ("weight", "bias"):
        checkpoint["state_dict"][f"network.network.classifier.{name}"] *= 30
    torch.save(checkpoint, tmp_path / "confident.ckpt")
    return tmp_path / "confident.ckpt"


def fit(sfda, town, model, folder, *more):
    arguments = [*tiny_arguments("temperature_scaling", town, model), "--data.init_args.batch_size", 3]
    arguments += ["--data.init_args.samples_per_epoch", 6, *more]  # its validation images, each once
    assert sfda("fit", *arguments, "--out", folder) == 0
    return json.loads((folder / "calibration.json").read_text())


@pytest.mark.medium
def test_a_fit_agrees_with_scipy_on_the_sources_validation_images(town, confident_model, sfda, tmp_path, capsys):
    report = fit(sfda, town, confident_model, tmp_path / "run")
    assert "NLL" in capsys.readouterr().out
    images, labels = read(town, "val")
    network = SourceTraining.load_from_checkpoint(confident_model, weights_only=True).eval()
    with torch.no_grad():
        logits = network(images).double().permute(0, 2, 3, 1).numpy()
    scores, labels = logits[labels != 255], labels[labels != 255].astype(np.int64)
    wanted = scipy_temperature(scores, labels)
    assert report["temperature"] == pytest.approx(wanted, rel=1e-4)
    assert abs(np.log(wanted)) > 0.1
    assert report["pixels"] == len(labels)
    assert report["nll_before"] == pytest.approx(nll(scores, labels, 1.0), rel=1e-5)
    assert report["nll_after"] == pytest.approx(nll(scores, labels, wanted), rel=1e-5)

    calibrated = TemperatureScaling.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    with torch.no_grad():
        before, after = network.predict_probabilities(images), calibrated.predict_probabilities(images)
    assert torch.equal(before.argmax(1), after.argmax(1))
    scaled = torch.from_numpy(logits / report["temperature"]).softmax(-1).permute(0, 3, 1, 2)
    torch.testing.assert_close(after.double(), scaled, rtol=1e-3, atol=1e-6)

    source = torch.load(confident_model, weights_only=True)["state_dict"]
    state = torch.load(tmp_path / "run/selected.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {"temperature", *source, *(f"calibrated.{key}" for key in source)}
    assert all(torch.equal(state[f"{prefix}{key}"], source[key]) for key in source for prefix in ("", "calibrated."))


@pytest.mark.medium
def test_what_the_scores_speak_of_does_not_matter(town, confident_model, sfda, tmp_path):
    one = fit(sfda, town, confident_model, tmp_path / "one")
    flat = ["road", "sidewalk", "building", "wall", "fence", "vegetation", "terrain", "sky"]
    groups = {"flat": flat, "thing": [name for name in CITYSCAPES19.names if name not in flat]}
    content = {"names": list(groups), "colours": [[0, 0, 0], [255, 0, 0]], "groups_of_cityscapes19": groups}
    (tmp_path / "coarse.yaml").write_text(yaml.safe_dump(content))
    options = ["--data.init_args.score_classes", tmp_path / "coarse.yaml"]
    assert fit(sfda, town, confident_model, tmp_path / "other", *options) == one


@pytest.mark.medium
def test_views_act_before_the_temperature(town, confident_model, sfda, tmp_path):
    report = fit(sfda, town, confident_model, tmp_path / "run", "--model.init_args.views", "multi_scale")
    images, labels = read(town, "val")
    network = SourceTraining.load_from_checkpoint(confident_model, weights_only=True, views="multi_scale").eval()
    with torch.no_grad():
        averaged = network.predict_probabilities(images).double().permute(0, 2, 3, 1).numpy()
    wanted = scipy_temperature(np.log(averaged[labels != 255]), labels[labels != 255].astype(np.int64))
    assert report["temperature"] == pytest.approx(wanted, rel=1e-4)
    calibrated = TemperatureScaling.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    with torch.no_grad():
        got = calibrated.predict_probabilities(images).permute(0, 2, 3, 1).numpy()
    powers = averaged ** (1 / report["temperature"])
    np.testing.assert_allclose(got, powers / powers.sum(-1, keepdims=True), atol=1e-5)


@pytest.mark.medium
def test_training_images_of_the_source_are_not_asked_for(town, confident_model, sfda, tmp_path):
    shutil.copytree(town / "gta5", tmp_path / "gta5")
    names = (tmp_path / "gta5/train.txt").read_text().split()
    (tmp_path / "gta5/train.txt").unlink()
    for path in [path for path in (tmp_path / "gta5").rglob("*.png") if path.name in names]:
        path.unlink()
    assert len(list((tmp_path / "gta5/images").iterdir())) == 6
    expected = fit(sfda, town, confident_model, tmp_path / "all")
    alone = fit(sfda, town, confident_model, tmp_path / "alone", "--data.init_args.source.root", tmp_path / "gta5")
    assert alone["temperature"] == expected["temperature"]


@pytest.mark.medium
def test_fewer_images_than_a_batch_are_a_sentence(town, confident_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("temperature_scaling", town, confident_model), "--data.init_args.batch_size", 8]
    arguments += ["--data.init_args.samples_per_epoch", "null"]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "no full batch of 8" in capsys.readouterr().err
