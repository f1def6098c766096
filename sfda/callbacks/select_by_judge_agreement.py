"""The checkpoint that agrees most with a frozen second judge."""

from sfda.callbacks.selection import Selector


class SelectByJudgeAgreement(Selector):
    """Largest share of pixels with the class that the second judge gives them; see `sfda.judging.second_judge`.

    `sfda.callbacks.collapse_guard.CollapseGuard` logs it, on the few target validation images that it looks at.
    """

    score = "judge_agreement"
    mode_of_score = "max"
