"""The search as such: which candidates it tries, and what it keeps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfda.search.candidates import SOURCE, Candidate, Scored
from sfda.search.search import LEAST_GAIN, Decision, Step, search, steps_for

CLASSES = 8


def scoring(value):
    """A score function of `value`: candidate → score, and the candidates that it was asked for."""
    asked = []

    def score(step, candidates):
        asked.extend(candidates)
        return [Scored(each, value(each), 0.0, CLASSES, 0.1) for each in candidates]

    return score, asked


def run(value, has_batch_norm=True):
    score, asked = scoring(value)
    return list(search(steps_for(has_batch_norm=has_batch_norm), score)), asked


def peak(scale, alpha, colours):
    return lambda c: 1 - abs(math.log(c.scale / scale)) - abs(c.alpha - alpha) / 3 - abs(c.colours - colours) / 9


@given(
    st.sampled_from([0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]),
    st.sampled_from([0, 0.25, 0.5, 0.75, 1]),
    st.sampled_from([0, 0.5, 1]),
)
def test_the_best_of_a_single_peak_is_found(scale, alpha, colours):
    decisions, _ = run(peak(scale, alpha, colours))
    assert decisions[-1].chosen.candidate == Candidate(scale, alpha, colours)


@given(st.randoms(use_true_random=False))
def test_nothing_is_scored_twice_and_the_score_never_falls(random):
    values = {}
    decisions, asked = run(lambda candidate: values.setdefault(candidate, random.random()))
    assert len(asked) == len(set(asked))
    assert asked[0] == SOURCE
    scores = [decision.chosen.score for decision in decisions]
    assert scores == sorted(scores)
    assert [each.candidate for decision in decisions for each in decision.scored] == asked
    assert all(0 < c.scale <= 2 and 0 <= c.alpha <= 1 and 0 <= c.colours <= 1 for c in asked)


def test_what_scores_hardly_more_than_the_source_model_does_not_replace_it():
    for gain, kept in ((0.9 * LEAST_GAIN, True), (1.1 * LEAST_GAIN, False)):
        decisions, _ = run(lambda candidate, gain=gain: 0.5 if candidate == SOURCE else 0.5 + gain)
        assert (decisions[-1].chosen.candidate == SOURCE) == kept


def test_a_network_without_batch_norm_is_searched_for_its_size_alone():
    decisions, asked = run(peak(2, 1, 1), has_batch_norm=False)
    assert decisions[-1].chosen.candidate == Candidate(2.0)
    assert all(candidate.alpha == candidate.colours == 0 for candidate in asked)


def test_the_score_is_agreement_and_infomax_as_a_share_of_its_largest_value():
    assert Scored(SOURCE, 0.9, math.log(19), 19, 0.0).score == pytest.approx(1.9)
    assert Scored(SOURCE, 0.9, 0.5 * math.log(11), 11, 0.0).score == pytest.approx(1.4)
    assert Scored(SOURCE, 1.0, 0.0, 1, 0.0).score == 1.0


def test_a_decision_says_why():
    score, _ = scoring(peak(1.5, 0, 0))
    steps = [Step("size", lambda best: [Candidate(1.5)]), Step("statistics", lambda best: [best._replace(alpha=0.5)])]
    source, size, statistics = search(steps, score)
    assert str(source) == "source: kept"
    assert str(size) == f"size: size x 1.5 scores {math.log(1.5):.3f} more"
    assert str(statistics) == "statistics: kept"
    assert statistics.as_dict()["chosen"] == "size x 1.5"
    assert statistics.as_dict()["candidates"][0]["candidate"] == "size x 1.5, α 0.5"
    assert isinstance(size, Decision)
