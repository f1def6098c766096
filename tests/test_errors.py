import math

import pytest

from sfda.errors import UserError, refuse_negative, refuse_outside


@pytest.mark.parametrize(
    ("interval", "fine", "refused", "message"),
    [
        ((0, 1), (0, 0.5, 1), (-0.1, 1.1, math.nan), "a number from 0 to 1, not"),
        ((0, 1, "[)"), (0, 0.999), (-0.1, 1, math.nan), "a number from 0, below 1, not"),
        ((0, 1, "(]"), (0.001, 1), (0, 1.1, math.nan), "a number above 0, up to 1, not"),
        ((0.5, 1, "()"), (0.6,), (0.5, 1, math.nan), "a number above 0.5, below 1, not"),
        ((1, math.inf), (1, 10**9), (0, -1, math.nan), "a number from 1 up, not"),
        ((0, math.inf, "[)"), (0, 10.0), (-1, math.inf), "a number from 0 up, not"),
    ],
)
def test_an_option_outside_of_its_interval_is_named_with_the_interval(interval, fine, refused, message):
    for value in fine:
        refuse_outside(*interval, share=value)
    for value in refused:
        with pytest.raises(UserError, match=f"^model option share: {message} {value}$"):
            refuse_outside(*interval, other=fine[0], share=value)


def test_a_negative_option_is_refused():
    refuse_negative(lr=0, weight_decay=10.0)
    with pytest.raises(UserError, match=r"^model option lr: a number from 0 up, not -1$"):
        refuse_negative(weight_decay=0.0, lr=-1)
