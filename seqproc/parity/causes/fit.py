"""Whether draws are what they should be when a candidate is taken for true.

Every token is scored in the candidate's own distribution. Then all that is tested of the policy is
tested of it: places, ranks, surprisal, independence, and the bets of the whole catalogue, which now
are placed against the candidate. So nothing is a cause that leaves anything to explain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqproc.parity.betting.bans import Bans
from seqproc.parity.betting.cuts import IGNORED, TEMPERATURE
from seqproc.parity.betting.evidence import BANNED, WINDOWS, Window, evidence, in_part
from seqproc.parity.betting.findings import bet_findings
from seqproc.parity.causes.candidates import Candidate, closer, gains_in, placed
from seqproc.parity.causes.repeats import same_contexts
from seqproc.parity.draws import (
    Draws,
    Floats,
    RowDistribution,
    score_rows,
    token_columns,
    with_tokens,
)
from seqproc.parity.findings.places import place_findings
from seqproc.parity.findings.sampler import sampler_findings
from seqproc.parity.reading import Rows
from seqproc.parity.suspected import scored_under
from seqproc.parity.suspects import Case
from seqproc.parity.verdict import Finding, decide
from seqproc.policy import log_q

_MOSTLY = 0.999  # share of tokens in a candidate's support; rounding may put a few outside
# Probability that the true candidate is said to leave something, at most; of one whose log q the
# engine reports, which is told apart by these, it is the rate of false alarms.
_LEVEL = 0.01
_MOSTLY_REPORTED = 0.99  # share of log q that agree; a cut of the support may move a few
_SMALL_PART = 0.2  # of the median error that a cause leaves, and is taken to explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A candidate at its most probable parameter, by the exact likelihood of the tokens."""

    candidate: Candidate
    holds: bool  # whether all tests of the tokens do when it is taken for true
    left: tuple[str, ...]  # what does not hold then, in words
    reported: float  # share of the engine's log q that are its own; NaN without
    is_vague: bool  # whether other weights look like it: a temperature above the policy's
    level: float  # probability that it is said to leave something if it is true, at most
    whole: RowDistribution | None  # the member, where it is a distribution of logits

    @property
    def is_reported(self) -> bool:
        """Whether the engine's log q are the candidate's."""
        return self.reported >= _MOSTLY_REPORTED


def fitted(candidates: Sequence[Candidate], case: Case) -> list[Fit]:
    """Candidates scored in full: those of the catalogue in one forward, each suspect in its own.

    And one more forward for temperatures close to the likeliest ones.
    """
    members = _scored(candidates, case)
    nearer = [
        closer(one, case, {words: _gain(one, draws, case) for words, draws in scored.items()})
        or replace(one, wholes={})
        for one, scored in zip(candidates, members, strict=True)
    ]
    more = _scored(nearer, case)
    return [
        _best(one, {**one.wholes, **near.wholes}, {**first, **second}, case)
        for one, near, first, second in zip(candidates, nearer, members, more, strict=True)
    ]


def _scored(candidates: Sequence[Candidate], case: Case) -> list[dict[str, Draws]]:
    """The draws under every member of each, by description."""
    wholes = {
        f"{n}/{words}": whole
        for n, one in enumerate(candidates)
        for words, whole in one.wholes.items()
    }
    found = score_rows(case.answers, case.scorer, wholes, override=case.override) if wholes else {}
    return [
        {words: found[f"{n}/{words}"] for words in one.wholes} for n, one in enumerate(candidates)
    ]


def _gain(candidate: Candidate, draws: Draws, case: Case) -> float:
    return float(gains_in(candidate.window, draws.logqs, case).sum())


def _best(
    candidate: Candidate,
    wholes: Mapping[str, RowDistribution],
    members: dict[str, Draws],
    case: Case,
) -> Fit:
    """The member that the tokens are most likely under."""
    if candidate.suspect is not None:
        members = {candidate.family: scored_under(case, candidate.suspect)}
    gains = {
        words: gains_in(candidate.window, draws.logqs, case) for words, draws in members.items()
    }
    words = max(gains, key=lambda name: gains[name].sum())
    draws = _within(candidate.window, members[words], case)
    reported = share_reported(case, draws.logqs)
    level = case.false_alarms if reported >= _MOSTLY_REPORTED else max(_LEVEL, case.false_alarms)
    left = leaves(case, draws, gains[words], level)
    return Fit(
        candidate=replace(
            candidate,
            description=placed(words, candidate.window),
            log_odds=float(gains[words].sum()) + candidate.log_share,
        ),
        holds=not left,
        left=left,
        reported=reported,
        level=level,
        whole=wholes.get(words),
        is_vague=candidate.family == TEMPERATURE
        and words != IGNORED  # by chance no other weights look like T = 1 and nothing else
        and not case.policy.truncates  # they would cut at other tokens, too
        and float(draws.entropies.sum()) > float(case.draws.entropies.sum()),
    )


def with_bans(fit: Fit, case: Case) -> Fit:
    """The fit, held against bets under its candidate that one more id is never sampled.

    It takes a forward of its own. Suspects, and candidates of draws that are not known, stay as
    they are.
    """
    window = fit.candidate.window
    if fit.whole is None or window.part < 1:
        return fit
    bans, whole = Bans(), fit.whole

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        wide = logits.double()
        inside = window.holds(rows.steps.cpu().numpy(), rows.sequences.cpu().numpy())
        is_inside_R1 = torch.from_numpy(inside).to(logits.device).unsqueeze(-1)
        log_r_RV = torch.where(is_inside_R1, whole(wide, rows), log_q(wide, case.policy))
        bans.note(log_r_RV, rows.tokens)
        return {"tokens": rows.tokens}

    token_columns(case.answers, case.scorer, reading, case.override)
    assert bans.log_e is not None
    log_e = float(np.logaddexp.reduce(bans.log_e)) - math.log(len(bans.log_e))
    if log_e < -math.log(fit.level):
        return fit
    return replace(fit, holds=False, left=(*fit.left, BANNED))


def _within(window: Window, draws: Draws, case: Case) -> Draws:
    """Draws scored under an alternative in a window, and under the policy elsewhere."""
    if window == WINDOWS[0]:
        return draws
    inside = window.holds(draws.steps, draws.owners)
    if window.part < 1:
        inside = inside & _is_from(window, draws, case)[draws.owners]
    mixed = {
        name: np.where(inside.reshape(-1, *(1,) * (values.ndim - 1)), values, policys)
        for (name, values), policys in zip(
            draws.of_tokens().items(), case.draws.of_tokens().values(), strict=True
        )
    }
    return replace(draws, **mixed)


def _is_from(window: Window, draws: Draws, case: Case) -> NDArray[np.bool_]:
    """Which draws are from an alternative, ``[D]``: each by chance, as probably as it is.

    Given these the tokens of either kind are distributed as they are to be, if the alternative is
    true; those that are most probably from it would not be.
    """
    gains = np.add.reduceat(gains_in(WINDOWS[0], draws.logqs, case), draws.starts)
    probabilities = np.exp(math.log(window.part) + gains - in_part(gains, window.part))
    return np.asarray(np.random.default_rng(0).random(len(gains)) < probabilities)


def leaves(case: Case, draws: Draws, gains: Floats, level: float) -> tuple[str, ...]:
    """The tests that fail when draws come from the distributions that they are scored under.

    Args:
        case: the draws under the policy.
        draws: they under an alternative r.
        gains: ``[N]`` log r/q of the tokens, nats.
        level: probability that one fails if r is what they come from, at most.
    """
    findings: list[Finding] = [
        *sampler_findings(draws),
        *place_findings(draws, case.stopping.max_new_tokens, case.engine.batch_size),
        same_contexts(with_tokens(case.answers), draws),
    ]
    # Where tokens lie outside the policy's support the bets are not on all that came.
    if case.nominal.gains is not None and case.draws.in_support.all():
        against = case.nominal.gains.against(gains)
        findings += bet_findings(evidence(against), case.error.nats)
    outside = ("support",) if float(draws.in_support.mean()) < _MOSTLY else ()
    return (*outside, *decide(findings, level).failed)


def share_reported(case: Case, logqs: Floats) -> float:
    """Which share of the reported log q is that of tokens as they were scored; NaN without.

    A fitted parameter is near the true one and not it: so an error that is a small part of the
    policy's own counts as none.
    """
    reported = case.nominal.engine_logqs
    if reported is None:
        return math.nan
    told = ~np.isnan(reported)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(reported[told] - logqs[told])
        nominal = np.abs(reported[told] - case.draws.logqs[told])
    allowed = max(case.tolerance, _SMALL_PART * float(np.median(nominal)))
    return float((gaps <= allowed).mean())
