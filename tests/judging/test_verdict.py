"""Better, worse, or cannot tell."""

from dataclasses import replace

import numpy as np
import pytest

from sfda.judging.bootstrap import Interval
from sfda.judging.evidence import Evidence
from sfda.judging.verdict import judge_with_labels, judge_without_labels

N, C = 12, 5
MASS = np.array([0.4, 0.3, 0.2, 0.08, 0.02])


def against(right: float) -> np.ndarray:
    """A model that has `right` of each of the judge's classes, the rest as the next class, some images more so."""
    draws = np.random.default_rng(0).uniform(-0.02, 0.02, N)
    shares = [np.eye(C) * (right + draw) + np.roll(np.eye(C), 1, 1) * (1 - right - draw) for draw in draws]
    return np.stack([1e4 * MASS[:, None] * share for share in shares])


def evidence(right: float = 0.8, nats: float = 0.0, **changes) -> Evidence:
    """Of a sound model whose InfoMax is `nats` above the source model's."""
    rows = Evidence(against(right), np.full(N, 0.8), np.full(N, 0.5 - nats), np.tile(MASS, (N, 1)))
    return replace(rows, **changes)


SOURCE, JUDGE = evidence(), evidence(1.0, nats=0.3)


def seen(*classes: int) -> np.ndarray:
    """A model that predicts no other class than these, the first of them in place of all others."""
    found = 1e4 * np.tile(np.diag(MASS), (N, 1, 1))
    for other in set(range(C)) - set(classes):
        found[:, other, classes[0]] += found[:, other, other]
        found[:, other, other] = 0
    return found


def lost(right: float) -> np.ndarray:
    """A model that predicts the rarest two classes nowhere, and is right about the others."""
    found = against(right)
    found[:, :, 0] += found[:, :, 3:].sum(2)
    found[:, :, 3:] = 0
    return found


@pytest.mark.parametrize(
    ("adapted", "word", "reason"),
    [
        (evidence(), "cannot tell", "no score changes clearly"),
        (evidence(nats=0.1), "better", "InfoMax rises from 0.8"),
        (evidence(0.9), "better", "mIoU against the second judge's classes rises from 60.5 to 7"),
        (evidence(0.9, nats=0.1), "better", "InfoMax rises"),
        (evidence(nats=0.03), "cannot tell", "no score"),  # clear, but too little
        (evidence(0.7, nats=0.1), "cannot tell", "the second judge's classes falls"),
        (evidence(0.7, nats=0.4), "better", "falls from 60.5 to 4"),  # may know more than the judge
        (evidence(0.7), "cannot tell", "the second judge's classes falls"),
        (evidence(0.9, nats=-0.1), "cannot tell", "InfoMax falls"),
        (evidence(nats=-0.1), "cannot tell", "InfoMax falls"),
        (evidence(0.7, nats=-0.1), "worse", "InfoMax falls"),
        (evidence(nats=0.1, against=seen(0)), "worse", "class coverage falls from 1.00 to 0.20"),
        (evidence(nats=-0.1, against=seen(0)), "worse", "class coverage falls from 1.00 to 0.20"),
        (evidence(nats=-0.1, against=lost(0.9)), "worse", "class coverage falls from 1.00 to 0.60"),
        (evidence(nats=0.1, against=lost(0.9)), "worse", "class coverage falls from 1.00 to 0.60"),
        (evidence(nats=0.4, against=lost(0.9)), "cannot tell", "class coverage falls from 1.00 to 0.60"),
        (evidence(nats=0.1, against=seen(0, 1, 2, 3)), "cannot tell", "class coverage falls from 1.00 to 0.80"),
        (evidence(0.9, nats=-0.3), "worse", "InfoMax falls from 0.83 to 0.53"),
        (evidence(0.9, nats=0.1, kept=np.full(N, 0.9995)), "cannot tell", "keep the source's class"),
    ],
)
def test_what_unlabelled_images_tell(adapted, word, reason):
    verdict = judge_without_labels(SOURCE, adapted, JUDGE)
    assert verdict.word == word, verdict
    assert any(reason in text for text in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    ("right", "nats", "word"),
    [
        (0.8, 0.1, "cannot tell"),
        (0.8, 0.4, "cannot tell"),
        (0.9, 0.1, "better"),
        (0.7, 0.4, "cannot tell"),  # nor does InfoMax silence the judge
        (0.9, -0.1, "cannot tell"),
        (0.7, -0.1, "worse"),
    ],
)
def test_infomax_never_speaks_for_what_was_trained_on_it(right, nats, word):
    assert judge_without_labels(SOURCE, evidence(right, nats), JUDGE, trains_on=("infomax",)).word == word


def test_a_judge_that_is_surpassed_is_named_so():
    verdict = judge_without_labels(SOURCE, evidence(0.7, nats=0.4), JUDGE)
    assert verdict.reasons[1].endswith(f", but that judge has less InfoMax itself, {JUDGE.infomax:.2f}")


def test_a_difference_within_its_error_is_none():
    noisy = 0.3 * np.random.default_rng(1).standard_normal(N)
    adapted = evidence(entropy=SOURCE.entropy - 0.06 + noisy - noisy.mean())
    assert adapted.infomax - SOURCE.infomax == pytest.approx(0.06)
    assert judge_without_labels(SOURCE, adapted, JUDGE).reasons == ("no score changes clearly",)
    mixed = np.where(np.arange(N)[:, None, None] % 2, against(0.95), against(0.67))
    assert judge_without_labels(SOURCE, evidence(against=mixed), JUDGE).reasons == ("no score changes clearly",)


def test_one_image_is_too_few():
    one, other, judge = (
        Evidence(**{name: value[:1] for name, value in vars(each).items()})
        for each in (SOURCE, evidence(0.9, nats=0.1), JUDGE)
    )
    assert judge_without_labels(one, other, judge).word == "cannot tell"


def test_labels_decide_where_they_can():
    assert judge_with_labels(Interval(0.02, 0.005, 0.04), 10).word == "better"
    assert judge_with_labels(Interval(-0.02, -0.04, -0.001), 10).word == "worse"
    unsure = judge_with_labels(Interval(0.02, -0.01, 0.04), 10)
    assert unsure.word == "cannot tell"
    assert "+2.0 mIoU on 10 labelled images, 95 % interval -1.0 to +4.0, which includes zero" in unsure.reasons[0]
