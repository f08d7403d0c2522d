"""Rewards: `tag_pref`, and whatever function of a response the user gives in its place.

`tag_pref` looks at a response's form and answer; math-verify, in a process of its own
(`math_judge`, `math_worker`), decides whether two formulas are equal. `rewarder` rewards a whole
batch.
"""

from seqproc.rewards.tag_pref import (
    MAX_ANSWER_CHARS,
    TAG_AND_ANSWER,
    Reward,
    answers_equal,
    rewards_of,
    tag_pref,
    tag_pref_batch,
    tagged_answer,
)

__all__ = [
    "MAX_ANSWER_CHARS",
    "TAG_AND_ANSWER",
    "Reward",
    "answers_equal",
    "rewards_of",
    "tag_pref",
    "tag_pref_batch",
    "tagged_answer",
]
