"""Better, worse, or cannot tell."""

from dataclasses import replace

import numpy as np
import pytest

from sfda.judging.bootstrap import Interval
from sfda.judging.evidence import Evidence
from sfda.judging.verdict import judge_with_labels, judge_without_labels

N, C = 12, 5


def evidence(**changes) -> Evidence:
    """Of a sound model; numbers are added to all images."""
    draws = np.random.default_rng(0)
    shares = {name: 0.8 + 0.02 * draws.standard_normal(N) for name in ("views", "perturbed", "judged", "kept")}
    mass = np.tile([0.4, 0.3, 0.2, 0.08, 0.02], (N, 1))
    rows = Evidence(**shares, entropy=np.full(N, 0.3), probabilities=mass, mass=mass, judge_mass=mass)
    added = {name: getattr(rows, name) + value for name, value in changes.items() if np.isscalar(value)}
    return replace(rows, **added, **{name: value for name, value in changes.items() if not np.isscalar(value)})


def collapsed(share: float) -> np.ndarray:
    return np.tile([share, 1 - share, 0, 0, 0], (N, 1))


SOURCE = evidence()


@pytest.mark.parametrize(
    ("adapted", "word", "reason"),
    [
        (evidence(), "cannot tell", "no signal changes clearly"),
        (evidence(views=0.03, perturbed=0.02), "better", "agreement between views rises from 8"),
        (evidence(views=0.03, perturbed=0.02, judged=-0.02), "cannot tell", "second judge falls"),
        (evidence(views=0.03), "cannot tell", "agreement between views rises"),
        (evidence(views=0.003, perturbed=0.003, judged=0.003), "cannot tell", "no signal"),  # clear, but too little
        (evidence(views=-0.03, perturbed=-0.02), "worse", "falls"),
        (evidence(views=0.2, perturbed=0.2, judged=0.05, mass=collapsed(1.0)), "worse", "class coverage falls"),
        (evidence(views=0.2, perturbed=0.2, probabilities=collapsed(0.9)), "worse", "InfoMax falls"),
        (evidence(views=0.03, perturbed=0.03, entropy=0.1), "cannot tell", "InfoMax falls"),
        (
            evidence(views=0.03, perturbed=0.03, mass=np.tile([0.3, 0.2, 0.2, 0.2, 0.1], (N, 1))),
            "cannot tell",
            "the classes' shares lie 20 % from the second judge's",
        ),
    ],
)
def test_what_unlabelled_images_tell(adapted, word, reason):
    verdict = judge_without_labels(SOURCE, adapted)
    assert verdict.word == word
    assert any(reason in text for text in verdict.reasons), verdict.reasons


def test_a_signal_that_was_trained_on_says_nothing():
    adapted = evidence(views=0.05, perturbed=0.03)
    assert judge_without_labels(SOURCE, adapted).word == "better"
    assert judge_without_labels(SOURCE, adapted, ("views",)).word == "cannot tell"
    assert judge_without_labels(SOURCE, evidence(perturbed=0.03, judged=0.03), ("views",)).word == "better"


def test_a_difference_within_its_error_is_none():
    noisy = 0.1 * np.random.default_rng(1).standard_normal(N)
    adapted = evidence(views=SOURCE.views + 0.01 + noisy, perturbed=SOURCE.perturbed + 0.01 - noisy)
    assert judge_without_labels(SOURCE, adapted).word == "cannot tell"


def test_one_image_is_too_few():
    one, other = (
        Evidence(**{name: value[:1] for name, value in vars(each).items()})
        for each in (SOURCE, evidence(views=0.1, perturbed=0.1))
    )
    assert judge_without_labels(one, other).word == "cannot tell"


def test_labels_decide_where_they_can():
    assert judge_with_labels(Interval(0.02, 0.005, 0.04), 10).word == "better"
    assert judge_with_labels(Interval(-0.02, -0.04, -0.001), 10).word == "worse"
    unsure = judge_with_labels(Interval(0.02, -0.01, 0.04), 10)
    assert unsure.word == "cannot tell"
    assert "+2.0 mIoU on 10 labelled images, 95 % interval -1.0 to +4.0, which includes zero" in unsure.reasons[0]
