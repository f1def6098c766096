"""The checkpoint that is best by agreement with a frozen second judge and by InfoMax together."""

from sfda.callbacks.rank_sum import RankSum


class SelectByJudgeAndInfoMax(RankSum):
    """Largest rank(agreement with the second judge) + rank(InfoMax).

    `sfda.callbacks.collapse_guard.CollapseGuard` logs the first, see `sfda.judging.second_judge`.
    """

    score = "judge_and_infomax"
    ranked = ("judge_agreement", "infomax")
    signals = ("infomax",)
