r"""The reward `tag_pref`: so much for the form of a response, so much for its answer.

A response earns 0.5 for exactly one `<answer>…</answer>` block, and 0.5 more if what stands
in it equals the gold answer; or other weights than these. Equality is decided by the first of
these that can:

1. the same text, once spaces, `$`, thousands commas, a full stop at the end and `\boxed{}` or
   `\text{}` around it are gone;
2. two plain numbers (`12`, `-0.5`, `3/4`) are compared exactly. Equal ones are equal and
   different integers are different; other numbers go on, as math-verify rounds decimals;
3. an answer longer than `MAX_ANSWER_CHARS` is not the gold answer;
4. math-verify, in a helper process with a time limit (see `math_judge.py`). What it cannot
   read in time is not the gold answer. It takes the last number out of a phrase, so
   `4 apples` equals `4`.

Nothing is remembered from one call to the next but that process, so a reward depends only on
the response and its gold answer. Any thread may ask. Knows nothing of prompts, tokens and
models: the text is the response alone, without its prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from seqproc._util.arguments import require, require_all
from seqproc.errors import ConfigError, SequenceError
from seqproc.rewards.math_judge import MathJudge

if TYPE_CHECKING:
    from seqproc.prompts import PromptEntry

Reward = Callable[[Sequence[str], "PromptEntry | None"], Sequence[float]]
"""Rewards of the responses to one prompt, given their texts and the prompt's entry, if any."""

TAG_AND_ANSWER = (0.5, 0.5)
"""What `tag_pref` gives for the form, and for the answer on top of it."""

MAX_ANSWER_CHARS = 512
"""Longer answers are compared as text only."""

_MAX_NUMBER_CHARS = 64
_OPENING, _CLOSING = "<answer>", "</answer>"
_NUMBER = re.compile(r"([+-]?)([0-9]+|[0-9]*\.[0-9]+|[0-9]+\.)(?:/([0-9]+))?")
_GROUPED_NUMBER = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
_SPACE_NOT_BETWEEN_WORDS = re.compile(r" (?!\w)|(?<!\w) ")
_LATEX_WRAPPING = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm)\{([^{}\\]*)\}")

_JUDGE = MathJudge()  # holds no process until a question needs one


def tag_pref(text: str, gold: str | None, weights: tuple[float, float] = TAG_AND_ANSWER) -> float:
    """Reward a response: 0.0, 0.5 for its form, or 1.0 for form and answer.

    Args:
        text: the response, without its prompt. Whatever it is, it earns a reward and raises
            nothing.
        gold: the gold answer. None or a blank one earns 0.0, whatever the response.
        weights: what the form earns, and what a right answer earns on top.

    Raises:
        MissingDependencyError: the comparison needs math-verify, and it is not installed.
        SeqprocError: math-verify's helper process cannot be started.
    """
    require("text", text, str, "a string", SequenceError)
    require("gold", gold, (str, type(None)), "a string or None", SequenceError)
    of_tag, of_answer = _pair(weights)
    if gold is None or not gold.strip():
        return 0.0
    answer = tagged_answer(text)
    if answer is None:
        return 0.0
    return of_tag + of_answer if answers_equal(gold, answer) else of_tag


def _pair(weights: object) -> tuple[float, float]:
    """Two finite numbers."""
    if isinstance(weights, (tuple, list)) and len(weights) == 2:
        first, second = weights
        kinds = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in weights)
        if kinds and math.isfinite(first) and math.isfinite(second):
            return first, second
    raise ConfigError(
        f"weights must be two finite numbers, of the form and of the answer, got {weights!r:.60}"
    )


def rewards_of(reward: Reward, texts: Sequence[str], entry: PromptEntry | None) -> list[float]:
    """What a user's reward says of the responses to one prompt.

    Raises:
        ConfigError: it does not give one finite number per response.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    found = reward(texts, entry)
    try:
        rewards = [float(value) for value in found]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the reward {name!r} must return one number per response, got {found!r}"
        ) from error
    if len(rewards) != len(texts) or not all(map(math.isfinite, rewards)):
        raise ConfigError(
            f"the reward {name!r} must return a finite number for each of {len(texts)} responses, "
            f"got {rewards}"
        )
    return rewards


def tag_pref_batch(
    texts: Sequence[str],
    gold: str | Sequence[str | None] | None,
    weights: tuple[float, float] = TAG_AND_ANSWER,
) -> list[float]:
    """Reward several responses, against one gold answer or against one each.

    Raises:
        SequenceError: there are not as many gold answers as responses.
        MissingDependencyError, SeqprocError: as for `tag_pref`.
    """
    require_all("texts", texts, str, "strings", SequenceError)
    if not isinstance(gold, (str, type(None))) and not isinstance(gold, Sequence):
        raise SequenceError(
            f"gold must be a string, None or a list of them, got {type(gold).__name__}"
        )
    golds = [gold] * len(texts) if gold is None or isinstance(gold, str) else list(gold)
    if len(golds) != len(texts):
        raise SequenceError(
            f"expected one gold answer for all responses or one for each, got {len(golds)} gold "
            f"answers for {len(texts)} responses"
        )
    return [tag_pref(text, each, weights) for text, each in zip(texts, golds, strict=True)]


def tagged_answer(text: str) -> str | None:
    """What stands between `<answer>` and `</answer>`, stripped.

    None unless the text holds each tag exactly once, in this order.
    """
    if text.count(_OPENING) != 1 or text.count(_CLOSING) != 1:
        return None
    start, end = text.index(_OPENING) + len(_OPENING), text.index(_CLOSING)
    return text[start:end].strip() if start <= end else None


def answers_equal(gold: str, answer: str) -> bool:
    """Whether an answer equals the gold answer, by the steps at the top of this module.

    Raises:
        MissingDependencyError, SeqprocError: as for `tag_pref`.
    """
    require("gold", gold, str, "a string", SequenceError)
    require("answer", answer, str, "a string", SequenceError)
    gold, answer = gold.strip(), answer.strip()
    if gold == answer:
        return True
    if not answer or max(len(gold), len(answer)) > MAX_ANSWER_CHARS:
        return False
    plain_gold, plain_answer = _plain(gold), _plain(answer)
    if plain_gold and plain_gold == plain_answer:
        return True
    verdict = _numbers_equal(plain_gold, plain_answer)
    return _JUDGE.are_equal(gold, answer) if verdict is None else verdict


def _plain(answer: str) -> str:
    """The answer without what does not change its meaning."""
    bare = re.sub(r"\s+", " ", answer.replace("−", "-"))
    bare = bare.strip("$ ").removesuffix(".").strip("$ ")
    wrapped = _LATEX_WRAPPING.fullmatch(bare)
    bare = _SPACE_NOT_BETWEEN_WORDS.sub("", wrapped[1].strip() if wrapped else bare)
    return bare.replace(",", "") if _GROUPED_NUMBER.fullmatch(bare) else bare


def _numbers_equal(gold: str, answer: str) -> bool | None:
    """Whether two plain numbers are equal; None where it takes more to say."""
    gold_number, answer_number = _number(gold), _number(answer)
    if gold_number is None or answer_number is None:
        return None
    if gold_number == answer_number:
        return True
    both_integers = gold_number.denominator == answer_number.denominator == 1
    return False if both_integers else None


def _number(plain: str) -> Fraction | None:
    match = _NUMBER.fullmatch(plain) if len(plain) <= _MAX_NUMBER_CHARS else None
    if match is None:
        return None
    sign, digits, denominator = match.groups()
    if denominator is not None and int(denominator) == 0:
        return None
    value = Fraction(digits.removesuffix(".")) / Fraction(denominator or 1)
    return -value if sign == "-" else value
