import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfda.metrics.judge_agreement import JudgeAgreement


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40), st.integers(0, 40))
def test_shares_and_total_variation_are_those_of_numpy(pairs, cut):
    ours, theirs = np.array(pairs).T
    metric = JudgeAgreement(4)
    for part in (slice(0, cut), slice(cut, None)):
        metric.update(torch.from_numpy(ours[part]).byte(), torch.from_numpy(theirs[part]).byte())
    shares = [np.bincount(each, minlength=4) / len(pairs) for each in (ours, theirs)]
    scores = metric.compute()
    assert scores["judge_agreement"] == pytest.approx((ours == theirs).mean())
    assert scores["class_drift"] == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)


def test_without_pixels_there_is_no_score():
    assert all(math.isnan(value) for value in JudgeAgreement(3).compute().values())
