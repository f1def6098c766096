import math

import pytest
import torch

from sfda.judging.shares import ScoredShare, best_share, needs_judge, score_shares

CLASSES = 3


class Line:
    """A model on the way from one that is right of everything to one that calls everything class 0."""

    def __init__(self):
        self.share = 0.0

    def use(self, share):
        self.share = share

    def __call__(self, images, size):
        start = torch.nn.functional.one_hot((images[:, 0] * CLASSES).long(), CLASSES).movedim(-1, 1).double()
        end = torch.zeros_like(start)
        end[:, 0] = 1
        return torch.lerp(start, end, self.share)


def scored(trains_on=()):
    images = [torch.rand(1, 3, 6, 8) for _ in range(3)]
    start, line = Line(), Line()
    judge = start if needs_judge(trains_on) else None
    return score_shares([0.0, 0.4, 1.0], line.use, line, judge, images, trains_on=trains_on), images


def test_the_scores_of_the_ends_are_known():
    (start, _, end), images = scored(("views", "infomax"))
    pixels = torch.cat([image[:, 0].flatten() for image in images])
    shares = torch.bincount((pixels * CLASSES).long(), minlength=CLASSES) / len(pixels)
    assert (start.agreement, start.judged, end.agreement) == (1, 1, 1)
    assert start.infomax == pytest.approx(-(shares * shares.log()).sum().item(), abs=1e-6)
    assert end.infomax == pytest.approx(0, abs=1e-9)
    assert end.judged == pytest.approx(shares[0].item())


@pytest.mark.parametrize(
    ("trains_on", "terms"),
    [
        ((), ("agreement", "infomax")),
        (("entropy",), ("agreement", "infomax")),
        (("entropy", "infomax"), ("agreement",)),
        (("entropy", "views"), ("infomax",)),
        (("entropy", "infomax", "views"), ("judged",)),
    ],
)
def test_the_score_is_made_of_what_is_not_trained_on(trains_on, terms):
    for each in scored(trains_on)[0]:
        values = {"agreement": each.agreement, "infomax": each.infomax / math.log(CLASSES), "judged": each.judged}
        assert (each.judged is None) == ("judged" not in terms)
        assert each.score == pytest.approx(sum(values[term] for term in terms))


def test_a_collapse_is_not_gone_to():
    rows, _ = scored()
    assert best_share(rows).share < 1


def test_of_equals_the_one_nearest_the_start_is_taken():
    rows = [ScoredShare(share, 0.5, 0.5, None, 1.0) for share in (0.5, 0.25, 1.0)]
    assert best_share(rows).share == 0.25
