"""What is known of a model without labels."""

import numpy as np
import pytest
import torch

from sfda.judging.evidence import JUDGE, Evidence, Model, look_at, together
from sfda.judging.perturbations import GAMMAS, NOISE, perturbations
from sfda.metrics.label_free import LabelFreeMetrics

IMAGES = torch.rand(3, 3, 12, 20, generator=torch.Generator().manual_seed(1))
C = 20


def by_colour(sharpness: float, dark: float = 1.0):
    """A model whose last four classes are dark, the more often the higher `dark`, red, green and blue."""

    def predict(images, size):
        images = torch.nn.functional.interpolate(images, size=size, mode="bilinear")
        none = torch.full((len(images), C - 4, *size), -1.0)
        return (sharpness * torch.cat([none, dark - images.sum(1, keepdim=True) / 2, images], 1)).softmax(1)

    return predict


def evidence(dark: float = 1.0, name: str = "m"):
    model, source, judge = (Model(by_colour(9.0, dark), by_colour(9.0, dark)) for dark in (dark, 0.7, 1.2))
    return together([look_at(image[None], source, judge.predict, {"m": model})[name] for image in IMAGES])


def test_perturbations_are_small_the_same_each_time_and_within_range():
    found, again = perturbations(IMAGES), perturbations(IMAGES)
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other)
        assert one.shape == IMAGES.shape
        assert one.min() >= 0
        assert one.max() <= 1
    assert (found[0] - IMAGES).abs().mean() == pytest.approx(NOISE * (2 / np.pi) ** 0.5, rel=0.2)
    for gamma, image in zip(GAMMAS, found[1:3], strict=True):
        np.testing.assert_allclose(image.numpy(), IMAGES.numpy() ** gamma, rtol=1e-5)
    mean = np.pad(IMAGES[0, 0].numpy(), 1, mode="edge")[4:7, 5:8].mean()
    assert float(found[3][0, 0, 4, 5]) == pytest.approx(mean, rel=1e-5)


def test_shares_are_those_of_loops():
    found = evidence()
    for row, image in enumerate(IMAGES):
        ours, before, judged = (
            by_colour(9.0, dark)(image[None], (12, 20)).argmax(1).flatten().tolist() for dark in (1.0, 0.7, 1.2)
        )
        assert ours not in (before, judged)
        pairs = np.zeros((C, C))
        for theirs, our in zip(judged, ours, strict=True):
            pairs[theirs, our] += 1
        np.testing.assert_array_equal(found.against[row], pairs)
        assert found.kept[row] == pytest.approx(np.mean(np.equal(ours, before)))
    every = found.against.sum(0)
    assert found.judged == pytest.approx(sum(every[i, i] for i in range(C)) / 720)
    shares = [(every[:, i].sum() - every[i].sum()) / 720 for i in range(C)]
    assert found.drift == pytest.approx(sum(map(abs, shares)) / 2)
    assert found.drift > 0.02
    assert evidence(1.2).drift == 0


def test_the_second_judge_is_looked_at_as_the_models_are():
    judge, same = evidence(name=JUDGE), evidence(1.2)
    for name, value in vars(judge).items():
        np.testing.assert_array_equal(value, getattr(same, name))
    assert judge.judged == 1


def test_infomax_and_coverage_are_those_of_the_scores():
    metric = LabelFreeMetrics(C)
    metric.update(by_colour(9.0)(IMAGES, (12, 20)))
    scores = metric.compute()
    found = evidence()
    assert found.infomax == pytest.approx(float(scores["infomax"]), abs=1e-6)
    assert found.coverage == pytest.approx(float(scores["class_coverage"]))
    assert found.entropy.mean() == pytest.approx(float(scores["entropy"]), abs=1e-6)


def test_what_images_add_to_infomax_is_the_jackknife_of_loops():
    found = evidence()
    rows = [Evidence(**{name: np.delete(value, i, axis=0) for name, value in vars(found).items()}) for i in range(3)]
    expected = [3 * found.infomax - 2 * row.infomax for row in rows]
    np.testing.assert_allclose(found.information, expected, rtol=1e-9)
    one = Evidence(**{name: value[:1] for name, value in vars(found).items()})
    assert one.information == pytest.approx([one.infomax])
