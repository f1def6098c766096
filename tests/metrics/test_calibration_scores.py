import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from sfda.metrics.calibration import calibration_error, calibration_scores, equal_mass_bins, merge_bins
from sfda.metrics.functional import score_sums


def flat(probabilities, labels):
    """Confidence, correctness and label of the labelled pixels, (n,) each."""
    p, y = probabilities.double().movedim(1, -1).reshape(-1, probabilities.shape[1]).numpy(), labels.flatten().numpy()
    p, y = p[y != 255], y[y != 255]
    return p.max(1), p.argmax(1) == y, y


def loop_gaps(confidence, correct, bins):
    """Share and |accuracy − confidence| of every bin with a pixel."""
    gaps = []
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            gaps.append((inside.mean(), abs(correct[inside].mean() - confidence[inside].mean())))
    return gaps


def loop_ece(confidence, correct, bins=15):
    return sum(share * gap for share, gap in loop_gaps(confidence, correct, bins))


def overconfident(seed, batch=3, classes=6, size=64, sharpen=2.0):
    """Labels drawn from softmax(z), probabilities softmax(sharpen · z): most confidences near 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, size, size, generator=generator)
    flat_p = logits.softmax(1).movedim(1, -1).reshape(-1, classes)
    labels = torch.multinomial(flat_p, 1, generator=generator).view(batch, size, size)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return (sharpen * logits).softmax(1), labels


def test_scores_against_loops():
    p, labels = overconfident(0)
    scores = {name: value.item() for name, value in calibration_scores(score_sums(p, labels)).items()}
    confidence, correct, y = flat(p, labels)
    images = [loop_ece(*flat(p[i : i + 1], labels[i : i + 1])[:2]) for i in range(3)]
    assert scores["ece"] == pytest.approx(loop_ece(confidence, correct), abs=1e-6)
    assert scores["ece_10"] == pytest.approx(loop_ece(confidence, correct, 10), abs=1e-6)
    assert scores["mce"] == pytest.approx(max(gap for _, gap in loop_gaps(confidence, correct, 15)), abs=1e-6)
    assert scores["ece_image_mean"] == pytest.approx(np.mean(images), abs=1e-6)
    classwise = [loop_ece(confidence[y == c], correct[y == c]) for c in range(6)]
    assert scores["classwise_ece"] == pytest.approx(np.mean(classwise), abs=1e-6)


@pytest.mark.parametrize(("bins", "norm", "name"), [(15, "l1", "ece"), (10, "l1", "ece_10"), (15, "max", "mce")])
def test_against_torchmetrics_away_from_edges(bins, norm, name):
    p, labels = overconfident(1, sharpen=1.2)
    confidence = p.amax(1)
    on_edge = ((confidence * 30 - (confidence * 30).round()).abs() < 1e-4) | (confidence == 1)
    labels[on_edge] = 255
    expected = multiclass_calibration_error(p, labels, num_classes=6, n_bins=bins, norm=norm, ignore_index=255)
    assert calibration_scores(score_sums(p, labels))[name].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("sharpen", [0.7, 1.0, 1.5, 3.0])
def test_adaptive_ece_against_sorted_pixels(sharpen):
    """Within 1e-3: pixels inside one of the fine bins have no order, most of all in the last one."""
    p, labels = overconfident(2, sharpen=sharpen)
    confidence, correct, _ = flat(p, labels)
    order = np.argsort(confidence, kind="stable")
    parts = zip(np.array_split(confidence[order], 15), np.array_split(correct[order], 15), strict=True)
    expected = sum(len(conf) / len(order) * abs(conf.mean() - right.mean()) for conf, right in parts)
    assert calibration_scores(score_sums(p, labels))["ece_adaptive"].item() == pytest.approx(expected, abs=1e-3)


def test_equal_mass_bins_divide_a_bin_in_proportion():
    bins = torch.tensor([[0.0, 6, 0, 3], [0, 3, 0, 3], [0, 2, 0, 1]], dtype=torch.float64)
    expected = torch.tensor([[3.0, 3, 3], [1.5, 1.5, 3], [1, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(equal_mass_bins(bins, 3), expected)
    torch.testing.assert_close(equal_mass_bins(bins, 2).sum(1), bins.sum(1))


def test_merged_bins_of_one_known_pixel_pair():
    bins = torch.zeros(3, 30, dtype=torch.float64)
    bins[:, 20], bins[:, 21] = torch.tensor([1, 0.69, 0]), torch.tensor([1, 0.72, 1])
    merged = merge_bins(bins, 15)
    torch.testing.assert_close(merged[:, 10], torch.tensor([2, 1.41, 1], dtype=torch.float64))
    assert calibration_error(merged).item() == pytest.approx(0.41 / 2, abs=1e-7)
    assert calibration_error(merge_bins(bins, 30)).item() == pytest.approx((0.69 + 0.28) / 2, abs=1e-7)


def test_one_pixel():
    p = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1)
    scores = calibration_scores(score_sums(p, torch.tensor([[[0]]])))
    for name in ("ece", "ece_10", "ece_adaptive", "ece_image_mean", "classwise_ece", "mce"):
        assert scores[name].item() == pytest.approx(0.1, abs=1e-6), name
    assert scores["nll"].item() == pytest.approx(-np.log(0.9), abs=1e-6)
    assert scores["brier"].item() == pytest.approx(0.02, abs=1e-6)


def test_no_labelled_pixel_gives_nan():
    p, labels = overconfident(3, size=4)
    assert all(value.isnan() for value in calibration_scores(score_sums(p, torch.full_like(labels, 255))).values())


def test_certain_and_right_is_perfect_certain_and_wrong_is_worst():
    p = torch.zeros(1, 3, 2, 2)
    p[:, 1] = 1
    right = calibration_scores(score_sums(p, torch.full((1, 2, 2), 1)))
    wrong = calibration_scores(score_sums(p, torch.full((1, 2, 2), 2)))
    for name in ("ece", "ece_10", "ece_adaptive", "classwise_ece", "mce"):
        assert (right[name], wrong[name]) == (0, 1), name
    assert wrong["brier"] == 2
