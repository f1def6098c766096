import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.errors import UserError
from sfda.networks.build import build_network
from sfda.networks.label_calibration_head import (
    LabelCalibrationHead,
    fit_temperature,
    prototype_sums,
    prototypes_from_sums,
)
from sfda.pseudo_labels.uniform_sample import UniformSample
from sfda.ranks import sum_over_ranks

examples = settings(deadline=None, max_examples=25)


def random_probabilities(seed, *shape, sharpness=3.0, dim=1):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(dim)


def distances(pixels, prototypes):
    """Squared Euclidean distances of (N, C) vectors to (C, C) prototypes, one by one."""
    return np.array([[((p - q) ** 2).sum() for q in prototypes] for p in pixels])


def flat(probabilities):
    """(B, C, H, W) → (N, C)."""
    return probabilities.numpy().transpose(0, 2, 3, 1).reshape(-1, probabilities.shape[1])


def loop_prototypes(pixels, gamma):
    num_classes = pixels.shape[1]
    prototypes = np.eye(num_classes)
    for c in range(num_classes):
        weighted = [(p.max() ** gamma, p) for p in pixels if p.argmax() == c]
        if weighted:
            prototypes[c] = sum(w * p for w, p in weighted) / sum(w for w, _ in weighted)
    return prototypes


# --------------------------------------------------------------------- the convolution


@examples
@given(num_classes=st.integers(2, 40), temperature=st.floats(0.01, 10), seed=st.integers(0, 10_000))
def test_the_convolution_is_the_softmax_of_distances(num_classes, temperature, seed):
    prototypes = random_probabilities(seed, num_classes, num_classes)
    probabilities = random_probabilities(seed + 1, 2, num_classes, 4, 5)
    head = LabelCalibrationHead(num_classes).double()
    head.set_prototypes(prototypes, temperature)
    got = flat(head(probabilities))
    squared = distances(flat(probabilities), prototypes.numpy())
    nearest = squared[np.arange(len(squared)), got.argmax(1)]
    np.testing.assert_allclose(nearest, squared.min(1), atol=1e-10)
    exponentials = np.exp(-(squared - squared.min(1, keepdims=True)) / temperature)
    np.testing.assert_allclose(got, exponentials / exponentials.sum(1, keepdims=True), atol=1e-9)
    assert head.temperature == pytest.approx(temperature, rel=1e-9)
    torch.testing.assert_close(head.prototypes, prototypes)


@examples
@given(num_classes=st.integers(2, 40), seed=st.integers(0, 10_000))
def test_a_new_head_predicts_what_the_network_does(num_classes, seed):
    probabilities = random_probabilities(seed, 2, num_classes, 4, 5).float()
    head = LabelCalibrationHead(num_classes)
    chosen = probabilities.gather(1, head(probabilities).argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(chosen, probabilities.amax(1), atol=1e-6, rtol=0)
    spread = torch.full((1, num_classes, 1, 1), 0.2 / (num_classes - 1))
    spread[:, 0] = 0.8
    assert head(spread).amax().item() == pytest.approx(0.8, abs=1e-5)
    head.set_prototypes(random_probabilities(seed, num_classes, num_classes), 0.1)
    head.reset()
    torch.testing.assert_close(head.prototypes, torch.eye(num_classes).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("fault", [1e-3, math.nan])
def test_prototypes_that_do_not_sum_to_one_are_refused(fault):
    prototypes = torch.eye(4).double()
    prototypes[2, 1] += fault
    with pytest.raises(UserError, match=r"classes \[2\]"):
        LabelCalibrationHead(4).set_prototypes(prototypes, 1.0)


def test_prototypes_of_one_pixel_of_many_classes_are_taken():
    """The largest error of a float32 softmax is that of a prototype, where a class has one pixel."""
    probabilities = random_probabilities(0, 20_000, 254, 1, 1).float()
    logits = probabilities.log() * 1.5
    probabilities = logits.softmax(1)
    faults = (probabilities.double().sum(1) - 1).abs().flatten()
    worst = probabilities[faults.argmax()][None]
    LabelCalibrationHead(254).set_prototypes(prototypes_from_sums(prototype_sums(worst)), 0.1)


def test_half_precision_is_raised():
    head = LabelCalibrationHead(5)
    head.set_prototypes(random_probabilities(0, 5, 5), 0.02)
    probabilities = random_probabilities(1, 2, 5, 6, 7).float()
    expected = head(probabilities)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(probabilities), expected)
    assert head(probabilities.bfloat16()).dtype == torch.float32


@pytest.mark.medium
def test_exported_behind_a_segmenter():
    head = LabelCalibrationHead(6)
    head.set_prototypes(random_probabilities(0, 6, 6), 0.1)
    segmenter = torch.nn.Sequential(build_network("tiny_network.build", 6), torch.nn.Softmax(1), head).eval()
    exported = torch.export.export(segmenter, (torch.rand(1, 3, 16, 24),)).module()
    images = torch.rand(1, 3, 16, 24)
    assert torch.equal(exported(images), segmenter(images))


def test_saved_and_loaded(tmp_path):
    head, again = LabelCalibrationHead(6), LabelCalibrationHead(6)
    head.set_prototypes(random_probabilities(0, 6, 6), 0.1)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    again.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    probabilities = random_probabilities(1, 2, 6, 6, 7).float()
    assert torch.equal(head(probabilities), again(probabilities))


# --------------------------------------------------------------------- prototypes


@examples
@given(
    num_classes=st.integers(2, 12),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    images=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_prototypes_are_weighted_means(num_classes, gamma, images, seed):
    probabilities = random_probabilities(seed, images, num_classes, 5, 6)
    sums = sum(prototype_sums(image[None], gamma) for image in probabilities)
    prototypes = prototypes_from_sums(sums)
    np.testing.assert_allclose(prototypes, loop_prototypes(flat(probabilities), gamma), atol=1e-12)
    np.testing.assert_allclose(prototypes.sum(1), 1, atol=1e-12)
    predicted = flat(probabilities).argmax(1)
    np.testing.assert_array_equal(sums[:, -1], np.bincount(predicted, minlength=num_classes))


def test_gamma_zero_is_the_plain_mean():
    probabilities = random_probabilities(0, 2, 3, 20, 20)
    pixels = flat(probabilities)
    prototypes = prototypes_from_sums(prototype_sums(probabilities, gamma=0.0))
    for c in range(3):
        np.testing.assert_allclose(prototypes[c], pixels[pixels.argmax(1) == c].mean(0), atol=1e-12)


def test_a_class_that_is_never_predicted_keeps_its_one_hot_vector():
    probabilities = random_probabilities(0, 1, 3, 8, 8)
    probabilities = torch.cat([probabilities * 0.99, torch.full((1, 1, 8, 8), 0.01)], dim=1)  # class 3 never wins
    prototypes = prototypes_from_sums(prototype_sums(probabilities))
    assert prototypes[3].tolist() == [0, 0, 0, 1]
    assert prototypes[:3, 3].tolist() == pytest.approx([0.01] * 3)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("predicted", range(3))
def test_one_pixel_that_is_nan_is_refused(gamma, predicted):
    """Never taken for a class without pixels: that one would keep its one-hot vector."""
    probabilities = random_probabilities(0, 1, 3, 8, 8)
    probabilities[0, :, 2, 5] = torch.eye(3)[predicted]
    probabilities[0, (predicted + 1) % 3, 2, 5] = math.nan
    probabilities[0, :, 7, 7] = math.nan
    prototypes = prototypes_from_sums(prototype_sums(probabilities, gamma))
    with pytest.raises(UserError, match="do not sum to 1"):
        LabelCalibrationHead(3).set_prototypes(prototypes, 1.0)


def test_many_pixels_lose_no_digits():
    """More pixels than a chunk holds, in float32, against float64 sums without chunks."""
    probabilities = random_probabilities(0, 1, 4, 300, 400).float()
    pixels = flat(probabilities).astype(np.float64)
    sums = prototype_sums(probabilities)
    for c in range(4):
        of_class = pixels[pixels.argmax(1) == c]
        np.testing.assert_allclose(sums[c, :4], (of_class.max(1, keepdims=True) * of_class).sum(0), rtol=1e-12)
    np.testing.assert_allclose(prototypes_from_sums(sums).sum(1), 1, atol=1e-7)


def test_forgetting_for_long_does_not_spoil_a_prototype():
    sums = prototype_sums(random_probabilities(0, 1, 3, 8, 8))
    for _ in range(3000):
        sums[1] *= 0.5
        prototypes = prototypes_from_sums(sums)
        assert (prototypes.sum(1) - 1).abs().max() < 1e-9
    assert prototypes[1].tolist() == [0, 1, 0]


# --------------------------------------------------------------------- temperature


@examples
@given(num_classes=st.integers(2, 19), sharpness=st.floats(1, 6), seed=st.integers(0, 10_000))
def test_the_temperature_keeps_the_mean_confidence(num_classes, sharpness, seed):
    probabilities = random_probabilities(seed, 2, num_classes, 20, 20, sharpness=sharpness)
    prototypes = prototypes_from_sums(prototype_sums(probabilities))
    sample = torch.from_numpy(flat(probabilities))
    temperature = fit_temperature(sample, prototypes)
    squared = distances(sample.numpy(), prototypes.numpy())
    confidence = 1 / np.exp(-(squared - squared.min(1, keepdims=True)) / temperature).sum(1)
    assert confidence.mean() == pytest.approx(sample.amax(1).mean().item(), abs=1e-4)


def test_a_mean_confidence_that_no_temperature_keeps():
    assert fit_temperature(torch.eye(3), torch.eye(3)) == pytest.approx(1e-4, rel=1e-6)  # certain of everything
    assert fit_temperature(torch.full((5, 3), 1 / 3), torch.eye(3)) > 0


def test_two_processes_equal_one(on_two_ranks):
    batches = [random_probabilities(seed, 2, 5, 8, 9) for seed in range(4)]

    def fit(mine, sample):
        sums = torch.zeros(5, 7, dtype=torch.float64)
        for batch in mine:
            sums += prototype_sums(batch)
            sample.add(batch)
        prototypes = prototypes_from_sums(sum_over_ranks(sums))
        return prototypes, torch.tensor(fit_temperature(sample.vectors, prototypes), dtype=torch.float64)

    # Large enough for all pixels, so that the samples are the same.
    alone = fit(batches, UniformSample(1000, (0, 0)))
    first, second = on_two_ranks(lambda rank: fit(batches[rank::2], UniformSample(500, (0, rank))))
    for ours, one, other in zip(alone, first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, ours, rtol=1e-9, atol=1e-12)


def test_a_process_without_pixels_has_no_part_in_the_sample(on_two_ranks):
    def fit(rank):
        sample = UniformSample(500, (rank,))
        if rank == 0:
            sample.add(random_probabilities(0, 1, 3, 8, 9))
        vectors = sample.of_all_ranks(torch.device("cpu")).reshape(-1, 3)
        return torch.tensor([fit_temperature(vectors, torch.eye(3)), len(vectors)], dtype=torch.float64)

    one, other = on_two_ranks(fit)
    assert one[0] == other[0]
    assert (one[1], other[1]) == (72, 0)
