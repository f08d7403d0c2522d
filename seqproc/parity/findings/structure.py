"""Checks that need no statistics: the prompt went in, and the response ends where it should.

Each can only be right or wrong, so a p-value is 1 or 0. Knows the engine contract.
"""

from __future__ import annotations

from collections.abc import Sequence

from seqproc.engines.base import Completion, StoppingRule
from seqproc.engines.stopping import finish
from seqproc.errors import EngineError
from seqproc.models.tokenization import Tokenizer
from seqproc.parity.draws import Answer, Draws, NominalScores
from seqproc.parity.verdict import Finding, Link

ENDINGS, SUPPORT = "endings", "support"  # names of findings


def structure_findings(
    answers: Sequence[Answer], tokenizer: Tokenizer, stopping: StoppingRule
) -> list[Finding]:
    """All checks of this module that read answers."""
    return [prompts(answers), endings(answers, tokenizer, stopping)]


def prompts(answers: Sequence[Answer]) -> Finding:
    """The engine gave the model the tokens that it was given."""
    told = [a for a in answers if a.completion.prompt_ids is not None]
    if not told:
        return Finding(
            name="prompts",
            link=Link.PROMPT,
            p_value=None,
            detail="the engine does not tell which prompt tokens it used",
        )
    wrong = [a for a in told if a.completion.prompt_ids != tuple(a.request.prompt_ids)]
    return _check("prompts", Link.PROMPT, len(wrong), len(told), _difference(wrong))


def _difference(wrong: Sequence[Answer]) -> str:
    if not wrong:
        return "prompts other than requested"
    asked, used = wrong[0].request.prompt_ids, wrong[0].completion.prompt_ids or ()
    return (
        f"prompts other than requested, as for request {wrong[0].request.index}: "
        f"{len(asked)} tokens asked, {len(used)} used"
    )


def endings(answers: Sequence[Answer], tokenizer: Tokenizer, stopping: StoppingRule) -> Finding:
    """Every response ends at its first EOS or completed stop string, or at the limit, and says so.

    The rule is applied again to the token ids, and compared: tokens, text and reason.
    """
    faults = [_fault(answer.completion, tokenizer, stopping) for answer in answers]
    wrong = [fault for fault in faults if fault]
    kinds = sorted(set(wrong), key=wrong.count, reverse=True)
    detail = "; ".join(f"{wrong.count(kind):,} × {kind}" for kind in kinds)
    return _check(ENDINGS, Link.TEXT, len(wrong), len(answers), detail or "wrong endings")


def _fault(completion: Completion, tokenizer: Tokenizer, stopping: StoppingRule) -> str:
    """What is wrong with the end of a response; empty when nothing is."""
    ids = completion.token_ids
    if len(ids) > stopping.max_new_tokens:
        return "longer than the limit"
    try:
        upto, text, reason = finish(ids, tokenizer, stopping)
    except EngineError:
        return f"said to end by {completion.finish_reason}, which is not in its tokens"
    if len(upto) < len(ids):
        return f"goes on after its {reason}"
    if reason != completion.finish_reason:
        return f"said to end by {completion.finish_reason}, but ends by {reason}"
    return "" if text == completion.text else "its text is not that of its tokens"


def support(draws: Draws, nominal: NominalScores) -> Finding:
    """No token lies outside the support, but for cuts that the logits' error can move."""
    outside = ~draws.in_support
    wrong = outside & ~nominal.is_reachable
    moved = outside & nominal.is_reachable
    expected = float(draws.last_probs[~nominal.is_settled].sum())
    detail = (
        f"tokens outside the support; {moved.sum():,} more within the error of the logits, where "
        f"up to {expected:.1f} are expected from {(~nominal.is_settled).sum():,} unsettled cuts"
    )
    if wrong.any():
        margins = nominal.cut_margin[wrong]
        detail += f"; their cut margins are {margins.min():.2g} to {margins.max():.2g} nats"
    return _check(SUPPORT, Link.POLICY, int(wrong.sum()), len(wrong), detail)


def _check(name: str, link: Link, num_wrong: int, total: int, detail: str) -> Finding:
    return Finding(
        name=name,
        link=link,
        p_value=0.0 if num_wrong else 1.0,
        statistic=float(num_wrong),
        is_exact=True,
        detail=f"{num_wrong:,} of {total:,}: {detail}",
    )
