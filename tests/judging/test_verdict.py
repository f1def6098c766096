"""Better, worse, or cannot tell."""

from dataclasses import replace

import numpy as np
import pytest

from sfda.judging.bootstrap import Interval
from sfda.judging.evidence import Evidence
from sfda.judging.verdict import judge_with_labels, judge_without_labels

N, C = 12, 5


MASS = np.tile([0.4, 0.3, 0.2, 0.08, 0.02], (N, 1))


def evidence(**changes) -> Evidence:
    """Of a sound model; numbers are added to all images, arrays take the place of what is there."""
    draws = np.random.default_rng(0)
    shares = {name: 0.8 + 0.02 * draws.standard_normal(N) for name in ("views", "perturbed", "judged", "kept")}
    rows = Evidence(**shares, entropy=np.full(N, 0.5), probabilities=MASS, mass=MASS, judge_mass=MASS)
    added = {name: getattr(rows, name) + value for name, value in changes.items() if np.isscalar(value)}
    return replace(rows, **added, **{name: value for name, value in changes.items() if not np.isscalar(value)})


def shifted(share: float) -> np.ndarray:
    """Classes whose shares differ from those of the second judge by so much."""
    return MASS + share * np.array([-1, 0.5, 0.5, 0, 0])


def collapsed(share: float) -> np.ndarray:
    return np.tile([share, 1 - share, 0, 0, 0], (N, 1))


SOURCE = evidence()
SURER = {"entropy": -0.1}
"""InfoMax rises by 0.1 nats, from 0.80."""


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("adapted", "word", "reason"),
    [
        (evidence(), "cannot tell", "no score changes clearly"),
        (evidence(**SURER), "better", "InfoMax rises from 0.8"),
        (evidence(views=0.1, perturbed=0.1, judged=0.1), "cannot tell", "agreement between views rises"),
        (evidence(**SURER, views=-0.03), "cannot tell", "agreement between views falls"),
        (evidence(entropy=-0.03), "cannot tell", "no score"),  # clear, but too little
        (evidence(views=0.2, mass=collapsed(1.0)), "worse", "class coverage falls from 1.00 to 0.20"),
        (evidence(views=0.2, probabilities=collapsed(0.9)), "worse", "InfoMax falls"),
        (evidence(**SURER, mass=np.tile([0.4, 0.3, 0.2, 0.1, 0], (N, 1))), "cannot tell", "class coverage falls"),
        (evidence(entropy=0.1, judged=-0.03, mass=shifted(0.1)), "worse", "the second judge falls"),
        (evidence(entropy=0.1, judged=-0.03), "cannot tell", "the second judge falls"),
        (evidence(judged=-0.03, mass=shifted(0.1)), "cannot tell", "the second judge falls"),
    ],
)
def test_what_unlabelled_images_tell(adapted, word, reason, trained):
    verdict = judge_without_labels(SOURCE, adapted, trained=trained)
    assert verdict.word == word
    assert any(reason in text for text in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    ("changes", "untrained", "trained"),
    [
        ({"mass": shifted(0.1)}, "better", "cannot tell"),
        ({"judged": -0.03}, "better", "cannot tell"),
        ({"mass": shifted(0.35), "kept": -0.5}, "better", "cannot tell"),  # the source may be what was lost
        ({"mass": shifted(0.35)}, "better", "cannot tell"),
        ({"kept": -0.5}, "better", "better"),
    ],
)
def test_a_trained_model_may_not_drift(changes, untrained, trained):
    adapted = evidence(**SURER, **changes)
    assert judge_without_labels(SOURCE, adapted, trained=False).word == untrained
    assert judge_without_labels(SOURCE, adapted, trained=True).word == trained


def test_a_trained_model_that_has_left_its_source_behind_is_worse_where_infomax_does_not_rise():
    left = evidence(mass=shifted(0.35), kept=-0.5)
    assert judge_without_labels(SOURCE, left, trained=True).word == "worse"
    assert judge_without_labels(SOURCE, left, trained=False).word == "cannot tell"


def test_a_score_that_was_trained_on_never_speaks_for_a_model():
    adapted = evidence(**SURER)
    assert judge_without_labels(SOURCE, adapted, trained=True).word == "better"
    unheard = judge_without_labels(SOURCE, adapted, trained=True, trains_on=("infomax",))
    assert unheard == ("cannot tell", ("no score changes clearly",))
    fallen = evidence(entropy=0.1, judged=-0.03, mass=shifted(0.1))  # against it, it does
    assert judge_without_labels(SOURCE, fallen, trained=True, trains_on=("infomax",)).word == "worse"


def test_a_difference_within_its_error_is_none():
    noisy = 0.3 * np.random.default_rng(1).standard_normal(N)
    adapted = evidence(entropy=SOURCE.entropy - 0.06 + noisy - noisy.mean())
    assert adapted.infomax - SOURCE.infomax == pytest.approx(0.06)
    assert judge_without_labels(SOURCE, adapted, trained=False).word == "cannot tell"


def test_one_image_is_too_few():
    one, other = (
        Evidence(**{name: value[:1] for name, value in vars(each).items()}) for each in (SOURCE, evidence(**SURER))
    )
    assert judge_without_labels(one, other, trained=False).word == "cannot tell"


def test_labels_decide_where_they_can():
    assert judge_with_labels(Interval(0.02, 0.005, 0.04), 10).word == "better"
    assert judge_with_labels(Interval(-0.02, -0.04, -0.001), 10).word == "worse"
    unsure = judge_with_labels(Interval(0.02, -0.01, 0.04), 10)
    assert unsure.word == "cannot tell"
    assert "+2.0 mIoU on 10 labelled images, 95 % interval -1.0 to +4.0, which includes zero" in unsure.reasons[0]
