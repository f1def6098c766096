import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from sfda.errors import UserError
from sfda.methods.kinds.post_hoc import TEMPERATURES
from sfda.methods.pseudo_cal import PseudoCal
from sfda.methods.source_training import SourceTraining
from tiny_runs import NETWORK, tiny_arguments


def sampled(images, valid, **options):
    """Rows (log p of C classes, label) that a batch adds, for a method that takes images for probabilities."""
    method = PseudoCal(network=NETWORK, num_classes=3, **options)
    method.uncalibrated_probabilities = lambda images: images.softmax(1)
    method.gather({"target": {"image": images, "valid": valid}})
    rows = method._sample.vectors.double().reshape(-1, 4).numpy()
    return rows[np.lexsort(rows.T)]


def rows_by_loops(images, valid, share, pairs):
    """The same, pixel by pixel."""
    rows = []
    for number, first in enumerate(images):
        second = images[number - 1]
        for y, x in np.ndindex(first.shape[1:]):
            a, b = first[:, y, x], second[:, y, x]
            if not (valid[number, y, x] and valid[number - 1, y, x]):
                continue
            if pairs == "different" and a.argmax() == b.argmax():
                continue
            mixed = share * a + (1 - share) * b
            rows.append([*(mixed - logsumexp(mixed)), a.argmax()])
    rows = np.array(rows)
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("pairs", ["different", "all"])
@pytest.mark.parametrize("share", [0.65, 0.9])
def test_pixels_are_mixed_in_pairs(pairs, share):
    generator = np.random.default_rng(0)
    images = generator.standard_normal((4, 3, 5, 6))
    valid = generator.random((4, 5, 6)) < 0.8
    got = sampled(torch.from_numpy(images).float(), torch.from_numpy(valid), share=share, pairs=pairs)
    wanted = rows_by_loops(images.astype(np.float32).astype(float), valid, share, pairs)
    assert len(got) == len(wanted)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_batch_that_gives_nothing_changes_nothing():
    images, valid = torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    assert len(sampled(images[:1], valid[:1])) == 0  # nothing to mix with
    assert len(sampled(images[:1].expand(2, -1, -1, -1), valid)) == 0  # predicted alike everywhere
    assert len(sampled(images, ~valid)) == 0


@pytest.mark.parametrize("share", [0.5, 0.3, 1.0])
def test_the_first_image_has_the_larger_share(share):
    with pytest.raises(UserError, match="share"):
        PseudoCal(network=NETWORK, num_classes=3, share=share)


# --------------------------------------------------------------------- a fit


def scipy_temperature(scores, labels):
    def nll(log_t):
        scaled = scores / np.exp(log_t)
        return np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels])

    return float(np.exp(minimize_scalar(nll, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-9}).x))


@pytest.fixture
def confident_model(source_model, tmp_path):
    """The source model with logits large enough for a temperature to matter."""
    checkpoint = torch.load(source_model, weights_only=True)
    for name in ("weight", "bias"):
        checkpoint["state_dict"][f"network.network.classifier.{name}"] *= 30
    torch.save(checkpoint, tmp_path / "confident.ckpt")
    return tmp_path / "confident.ckpt"


@pytest.mark.medium
def test_a_fit_agrees_with_scipy_on_the_same_mixtures(town, confident_model, sfda, tmp_path, monkeypatch):
    seen, gather = [], PseudoCal.gather

    def remember(self, batch):
        seen.append(batch["target"]["image"].clone())
        gather(self, batch)

    monkeypatch.setattr(PseudoCal, "gather", remember)
    assert sfda("fit", *tiny_arguments("pseudo_cal", town, confident_model), "--out", tmp_path / "run") == 0
    report = json.loads((tmp_path / "run/calibration.json").read_text())

    network = SourceTraining.load_from_checkpoint(confident_model, weights_only=True).eval()
    scores, labels = [], []
    with torch.no_grad():
        for images in seen:
            before = torch.cat([images[-1:], images[:-1]])
            logits = network(0.65 * images + 0.35 * before).double().permute(0, 2, 3, 1).numpy()
            first, second = (network(part).argmax(1).numpy() for part in (images, before))
            scores.append(logits[first != second])
            labels.append(first[first != second])
    scores, labels = np.concatenate(scores), np.concatenate(labels)
    assert len(seen) == 2
    assert report["pixels"] == len(labels) > 100
    wanted = scipy_temperature(scores, labels)
    assert report["temperature"] == pytest.approx(wanted, rel=1e-3)
    assert abs(np.log(wanted)) > 0.1

    calibrated = PseudoCal.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    images = torch.cat(seen)
    with torch.no_grad():
        got = calibrated.predict_probabilities(images, (48, 96))
        logits = torch.nn.functional.interpolate(network(images), size=(48, 96), mode="bilinear")
    torch.testing.assert_close(got, (logits / wanted).softmax(1), rtol=1e-2, atol=1e-5)
    assert torch.equal(got.argmax(1), network.predict_probabilities(images, (48, 96)).argmax(1))


@pytest.mark.medium
def test_one_image_a_batch_is_refused(town, source_model, sfda, tmp_path, capsys):
    arguments = [*tiny_arguments("pseudo_cal", town, source_model), "--data.init_args.batch_size", 1]
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "batch_size 2" in capsys.readouterr().err


@pytest.mark.medium
def test_two_processes_fit_what_one_does_with_their_batches(town, confident_model, sfda, tmp_path, monkeypatch):
    arguments = [*tiny_arguments("pseudo_cal", town, confident_model), "--data.init_args.samples_per_epoch", 16]
    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp_fork"]
    assert sfda("fit", *arguments, *two, "--out", tmp_path / "two") == 0

    from sfda.data.sampling import TrainingSampler

    original = TrainingSampler.__iter__

    def in_the_order_of_two_ranks(self):
        drawn = []
        for rank in range(2):
            half = TrainingSampler(self.dataset_size, self.stride, self.seed, self.epoch, 2, rank)
            drawn.append(list(original(half)))
        for start in range(0, len(drawn[0]), 4):
            for rank in range(2):
                yield from drawn[rank][start : start + 4]

    monkeypatch.setattr(TrainingSampler, "__iter__", in_the_order_of_two_ranks)
    assert sfda("fit", *arguments, "--out", tmp_path / "one") == 0
    one, other = (json.loads((tmp_path / name / "calibration.json").read_text()) for name in ("one", "two"))
    assert one.pop("calibrated") == other.pop("calibrated") == "SourceTraining"
    assert other == pytest.approx(one, rel=1e-5)
    assert one["pixels"] > 100
