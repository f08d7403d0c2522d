"""Randomness that is used twice, as a cause: tokens that are rightly distributed, each for itself.

Tokens of another distribution depend on each other as well, seen from q: what is more likely than
q says comes again more often. So randomness is the cause only where no other distribution has
become as probable, and where one draw of each prompt is as q says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from seqproc.parity.causes.candidates import Candidate
from seqproc.parity.causes.cause import Cause
from seqproc.parity.draws import Draws, with_tokens
from seqproc.parity.findings.places import place_findings
from seqproc.parity.findings.sampler import sampler_findings
from seqproc.parity.findings.structure import SUPPORT
from seqproc.parity.suspects import Case
from seqproc.parity.verdict import Finding, Link, decide

_RARE = 1e-6  # chance of a draw that another of the same prompt does not repeat
_LEVEL = 0.01  # probability that right tokens are said to be another distribution's, at most


def dependence(
    case: Case,
    failed: Sequence[Finding],
    noise: Candidate | None,
    distribution: Candidate | None,
) -> Cause | None:
    """Randomness used twice; None where something else than that may be at fault.

    Args:
        case: the draws.
        failed: the findings to explain.
        noise: the most probable way in which draws may depend on each other.
        distribution: the most probable distribution other than the policy's.
    """
    odds = 0.0 if noise is None else noise.log_odds
    counts, num_twins = _repeated(case)
    if _is_constant(counts):
        return Cause(
            link=Link.TOKENS,
            description="the engine's answers do not depend on seed and prompt at all",
            explains=True,
            detail=f"all {counts.total():,} draws are the same",
        )
    is_told = num_twins > 0 or odds > 0 or all(one.link is Link.TOKENS for one in failed)
    other = 0.0 if distribution is None else distribution.log_odds
    if not is_told or other > max(odds, 0.0) or not _is_right_alone(case, failed):
        return None
    which = ", ".join(finding.name for finding in failed if finding.link is Link.TOKENS)
    repeated = sum(count for count in counts.values() if count > 1)
    best = "" if noise is None or odds <= 0 else f"; {noise.description}: e^{odds:.1f}"
    return Cause(
        link=Link.TOKENS,
        description=f"what should be independent is not ({which}): randomness is used twice"
        + _or_constant(counts),
        explains=True,
        detail=f"{repeated:,} of {counts.total():,} draws are the same as another of their prompt; "
        f"{num_twins:,} of these are less likely than {_RARE:g} each{best}",
    )


def _repeated(case: Case) -> tuple[Counter[tuple[int, tuple[int, ...]]], int]:
    """How often each (prompt, answer) came, and how many draws chance would not repeat."""
    chances = np.exp(np.bincount(case.draws.owners, case.draws.logqs))
    keys = [(answer.prompt, answer.completion.token_ids) for answer in with_tokens(case.answers)]
    counts = Counter(keys)
    rare = zip(keys, chances, strict=True)
    return counts, sum(counts[key] > 1 and chance < _RARE for key, chance in rare)


def _is_right_alone(case: Case, failed: Sequence[Finding]) -> bool:
    """Whether one draw of each prompt is as q says; unknown is taken for yes.

    Of draws that depend on those of other prompts there is no part that tests hold of.
    """
    if SUPPORT in {finding.name for finding in failed}:
        return False
    alone = _one_of_each_prompt(case.draws)
    findings = [*sampler_findings(alone), *place_findings(alone, case.stopping.max_new_tokens)]
    if not decide([f for f in findings if f.link is Link.TOKENS], _LEVEL).holds:
        return True
    return decide([f for f in findings if f.link is not Link.TOKENS], _LEVEL).holds


def _one_of_each_prompt(draws: Draws) -> Draws:
    firsts = np.sort(np.unique(draws.prompts, return_index=True)[1])
    return Draws.concatenate([draws.some(int(n), int(n) + 1) for n in firsts])


def _is_constant(counts: Mapping[tuple[int, tuple[int, ...]], int]) -> bool:
    """Whether all prompts, of several, have one answer and no other."""
    prompts = {prompt for prompt, _ in counts}
    return len(prompts) > 1 and len({token_ids for _, token_ids in counts}) == 1


def _or_constant(counts: Mapping[tuple[int, tuple[int, ...]], int]) -> str:
    """The other explanation, where the draws of each (prompt, answer) leave it open."""
    prompts = {prompt for prompt, _ in counts}
    if max(counts.values(), default=0) > 1 and len(counts) == len(prompts):
        return ", or the engine's answers do not depend on the seed at all"
    return ""
