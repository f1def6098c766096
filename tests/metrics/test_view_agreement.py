import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from sfda.metrics.view_agreement import jitter_colours, ranks, view_agreement, views


def thresholds(images, size):
    """A model of two classes: is the pixel's red above one half? Resizes its own answer."""
    red = torch.nn.functional.interpolate(images[:, :1], size=size, mode="bilinear")
    return torch.cat([1 - red, red], dim=1)


def test_a_model_of_one_class_agrees_with_itself():
    images = torch.rand(3, 3, 16, 24)
    constant = lambda view, size: torch.tensor([0.1, 0.9])[None, :, None, None].expand(len(view), 2, *size)  # noqa: E731
    plain = constant(images, (16, 24)).argmax(1)
    assert view_agreement(constant, images, plain).tolist() == [1.0] * 3


def test_views_are_mapped_back():
    """On a smooth picture a model that looks at single pixels agrees with itself, mirrored or not."""
    ramp = torch.linspace(0, 1, 64).expand(2, 3, 32, 64)
    plain = thresholds(ramp, (32, 64)).argmax(1)
    shares = []
    for view, mirrored in views(ramp)[:3]:
        classes = thresholds(view, (32, 64)).argmax(1)
        shares.append(((classes.flip(-1) if mirrored else classes) == plain).double().mean().item())
    assert min(shares) > 0.95
    assert (thresholds(ramp.flip(-1), (32, 64)).argmax(1) == plain).double().mean() < 0.1  # the flip does matter


def test_agreement_is_the_mean_share_over_four_views():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 12, 20)
    plain = thresholds(images, (12, 20)).argmax(1)
    expected = np.zeros(2)
    for view, mirrored in views(images):
        classes = thresholds(view, (12, 20)).argmax(1).numpy()
        if mirrored:
            classes = classes[:, :, ::-1]
        for i in range(2):
            expected[i] += sum(
                int(classes[i, y, x] == plain[i, y, x]) for y in range(12) for x in range(20)
            ) / (12 * 20 * 4)  # fmt: skip
    np.testing.assert_allclose(view_agreement(thresholds, images, plain).numpy(), expected)


def test_jitter_is_fixed_and_small():
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(jitter_colours(images), jitter_colours(images))
    torch.testing.assert_close(jitter_colours(images, strength=0), images)  # up to rounding
    assert 0 < (jitter_colours(images) - images).abs().mean() < 0.2
    assert jitter_colours(images).min() >= 0
    assert jitter_colours(images).max() <= 1


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [1.0, 1.0, 0.0, 5.0], [2.0, 2.0, 2.0]])
def test_ranks_are_those_of_scipy(values):
    np.testing.assert_allclose(ranks(torch.tensor(values)).numpy(), rankdata(values) - 1)
