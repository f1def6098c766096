"""What is known of a model without labels."""

import numpy as np
import pytest
import torch

from sfda.judging.evidence import Evidence, Model, look_at, together
from sfda.judging.perturbations import GAMMAS, NOISE, perturbations
from sfda.metrics.label_free import LabelFreeMetrics
from sfda.metrics.view_agreement import views

IMAGES = torch.rand(3, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def by_colour(sharpness: float, dark: float = 1.0):
    """A model whose four classes are dark, the more often the higher `dark`, red, green and blue."""

    def predict(images, size):
        images = torch.nn.functional.interpolate(images, size=size, mode="bilinear")
        return (sharpness * torch.cat([dark - images.sum(1, keepdim=True) / 2, images], 1)).softmax(1)

    return predict


def evidence(dark: float = 1.0):
    model, source, judge = (Model(by_colour(9.0, dark), by_colour(9.0, dark)) for dark in (dark, 0.7, 1.2))
    return together([look_at(image[None], source, judge.predict, {"m": model})["m"] for image in IMAGES])


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
    found, predict = evidence(), by_colour(9.0)
    for row, image in enumerate(IMAGES):
        size = (12, 20)
        plain = predict(image[None], size).argmax(1)
        viewed = []
        for view, mirrored in views(image[None]):
            classes = predict(view, size).argmax(1)
            viewed.append((np.asarray(classes.flip(-1) if mirrored else classes) == np.asarray(plain)).mean())
        assert found.views[row] == pytest.approx(np.mean(viewed))
        perturbed = [
            (np.asarray(predict(other, size).argmax(1)) == np.asarray(plain)).mean()
            for other in perturbations(image[None])
        ]
        assert found.perturbed[row] == pytest.approx(np.mean(perturbed))
        for shares, dark in ((found.kept, 0.7), (found.judged, 1.2)):
            other = by_colour(9.0, dark)(image[None], size).argmax(1)
            assert not torch.equal(other, plain)
            assert shares[row] == pytest.approx(float((other == plain).double().mean()))
        np.testing.assert_allclose(found.mass[row], np.bincount(plain.flatten(), minlength=4) / 240)


def test_infomax_and_coverage_are_those_of_the_scores():
    metric = LabelFreeMetrics(4)
    metric.update(by_colour(9.0)(IMAGES, (12, 20)))
    scores = metric.compute()
    found = evidence()
    assert found.infomax == pytest.approx(float(scores["infomax"]), abs=1e-6)
    assert found.coverage == pytest.approx(float(scores["class_coverage"]))
    assert found.entropy.mean() == pytest.approx(float(scores["entropy"]), abs=1e-6)


def test_drift_is_half_of_what_the_shares_differ_by():
    found = evidence()
    assert found.drift == pytest.approx(0.5 * np.abs(found.mass.mean(0) - found.judge_mass.mean(0)).sum())
    assert found.drift > 0.02
    assert evidence(1.2).drift == 0


def test_what_images_add_to_infomax_is_the_jackknife_of_loops():
    found = evidence()
    rows = [Evidence(**{name: np.delete(value, i, axis=0) for name, value in vars(found).items()}) for i in range(3)]
    expected = [3 * found.infomax - 2 * row.infomax for row in rows]
    np.testing.assert_allclose(found.information, expected, rtol=1e-9)
    one = Evidence(**{name: value[:1] for name, value in vars(found).items()})
    assert one.information == pytest.approx([one.infomax])
