"""An engine under check: its draws sampled, scored, and held against every test.

Joins the tests of this package; computes nothing itself.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from seqproc.engines.answers import batch_size_of
from seqproc.engines.base import Engine, Request, StoppingRule
from seqproc.engines.noise import Noise, NotReplayable
from seqproc.models import vocab_size
from seqproc.models.parameters import ParamMapping
from seqproc.models.tokenization import Tokenizer, ids_that_write, special_token_ids
from seqproc.parity import metrics
from seqproc.parity.betting.certificate import certify
from seqproc.parity.betting.evidence import evidence
from seqproc.parity.betting.findings import allowed_families, bet_findings
from seqproc.parity.draws import Answer, Draws, NominalScores, sample, token_sequences, with_tokens
from seqproc.parity.findings import structure
from seqproc.parity.findings.places import place_findings
from seqproc.parity.findings.replay import Replay, replay, replay_finding
from seqproc.parity.findings.sampler import sampler_findings
from seqproc.parity.findings.twins import twins
from seqproc.parity.logit_error import LogitError, logit_error_of
from seqproc.parity.scoring import score_nominal
from seqproc.parity.sequential import Look, Until, batches
from seqproc.parity.suspected import with_bets
from seqproc.parity.suspects import Case, Suspect, joined
from seqproc.parity.verdict import Finding, decide_at
from seqproc.policy import SamplingPolicy
from seqproc.prompts import draw_seed
from seqproc.scorers import TeacherForcingScorer

OnLook = Callable[[Look], None]

_ENOUGH_GAPS = 100  # reported log q whose largest error is near that of all logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What was found of some draws."""

    findings: list[Finding]
    replayed: Replay | None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine under check, and all that its draws are held against."""

    engine: Engine
    scorer: TeacherForcingScorer
    tokenizer: Tokenizer
    policy: SamplingPolicy
    stopping: StoppingRule
    noise: Noise | NotReplayable
    override: ParamMapping | None
    suspects: Mapping[str, Suspect]
    logit_error: float | None  # given by the user, nats
    description: Mapping[str, Any]  # of the engine by itself
    false_alarms: float
    seed: int

    def sampled(
        self,
        requests: Sequence[Request],
        prompts: Sequence[int],
        before: Case | None = None,
        *,
        controls: bool = False,
    ) -> Case:
        """Draws, sampled and scored, and those that were before; with `Controls`, or without."""
        first = 0 if before is None else len(before.answers)
        answers = sample(
            self.engine,
            requests,
            prompts,
            self.policy,
            self.stopping,
            vocabulary=vocab_size(self.scorer.model),
        )
        if before is not None and not any(answer.completion.token_ids for answer in answers):
            return replace(before, answers=[*before.answers, *answers])  # there is nothing to score
        error = self._error_of(answers) if before is None else before.error
        draws, nominal = score_nominal(
            answers,
            self.scorer,
            self.policy,
            error.nats,
            noise=self.noise if isinstance(self.noise, Noise) else None,
            override=self.override,
            seed=self.seed if first == 0 else draw_seed(self.seed, first),
            controls=controls,
            special_token_ids=self._special_token_ids,
            stop_token_ids=self._stop_token_ids,
        )
        case = Case(
            engine=self.engine,
            answers=answers,
            scorer=self.scorer,
            policy=self.policy,
            stopping=self.stopping,
            draws=draws,
            nominal=nominal,
            override=self.override,
            suspects=self.suspects,
            error=error,
            false_alarms=self.false_alarms,
        )
        case = with_bets(case)
        return case if before is None else joined([before, case])

    def _error_of(self, answers: Sequence[Answer]) -> LogitError:
        return logit_error_of(
            self.description,
            self.logit_error,
            self.scorer,
            token_sequences(answers),
            self.override,
        )

    @functools.cached_property
    def _special_token_ids(self) -> list[int]:
        """Those of the tokenizer that the model has logits for, EOS apart."""
        ids = special_token_ids(self.tokenizer) - set(self.scorer.eos_token_ids)
        return sorted(i for i in ids if i < vocab_size(self.scorer.model))

    @functools.cached_property
    def _stop_token_ids(self) -> list[int]:
        """Those that write the last character of a stop string, EOS apart."""
        ends = "".join(stop[-1:] for stop in self.stopping.stop)
        found = ids_that_write(ends, self.tokenizer, vocab_size(self.scorer.model))
        return [i for i in found if i not in self.scorer.eos_token_ids]

    def sampled_until(
        self,
        requests: Sequence[Request],
        prompts: Sequence[int],
        until: Until,
        on_look: OnLook | None,
    ) -> tuple[Case, Judged, Look]:
        """Draws up to the look at which it is decided, or all of them; and that look."""
        start = time.perf_counter()
        case: Case | None = None
        for number, chosen in enumerate(batches(prompts, until.first_look), 1):
            case = self.sampled(requests[chosen], prompts[chosen], case, controls=True)
            judged = self.judged(case)
            assert case.nominal.gains is not None
            look = Look(
                number=number,
                num_draws=len(case.answers),
                most_draws=len(requests),
                num_tokens=len(case.draws.logqs),
                seconds=time.perf_counter() - start,
                verdict=decide_at(number, judged.findings, self.false_alarms),
                certificate=certify(
                    case.nominal.gains,
                    within=until.within,
                    level=until.level,
                    allowed=allowed_families(case.error.nats),
                ),
            )
            if on_look is not None:
                on_look(look)
            if look.is_decided or chosen.stop == len(requests):
                return case, judged, look
        raise AssertionError("there is a request, so there is a look")

    def judged(self, case: Case) -> Judged:
        """All tests of some draws."""
        findings = all_findings(
            case.answers,
            case.draws,
            case.nominal,
            self.tokenizer,
            self.stopping,
            self.policy,
            case.error,
            batch_size_of(self.engine),
        )
        noise = self.noise
        replayed = None if isinstance(noise, NotReplayable) else _replay(case, noise)
        findings.append(replay_finding(replayed, getattr(noise, "reason", "")))
        return Judged(findings=findings, replayed=replayed)


def _replay(case: Case, noise: Noise) -> Replay | None:
    nominal, draws, answers = case.nominal, case.draws, with_tokens(case.answers)
    if nominal.replayed is None:
        return None
    allowed = case.tolerance
    if nominal.engine_logqs is not None:
        gaps = metrics.settled_gaps(draws, nominal.engine_logqs, nominal.is_settled)
        if len(gaps) >= _ENOUGH_GAPS:  # the error is known then, not only bounded
            allowed = min(allowed, 2 * float(gaps.max()))
    return replay(
        noise.name,
        nominal.replayed,
        sampled=np.concatenate([answer.completion.token_ids for answer in answers]),
        indices=np.repeat([answer.request.index for answer in answers], draws.lengths),
        steps=draws.steps,
        is_settled=nominal.is_settled,
        allowed=allowed + noise.error,
    )


def all_findings(
    answers: Sequence[Answer],
    draws: Draws,
    nominal: NominalScores,
    tokenizer: Tokenizer,
    stopping: StoppingRule,
    policy: SamplingPolicy,
    error: LogitError,
    batch_size: int | None = None,
) -> list[Finding]:
    """Every test and check of sampled and scored draws, along the chain.

    Args:
        answers: from `sample`.
        draws: from `score_nominal`, with
        nominal: what it says beside.
        tokenizer: tells where a response ends.
        stopping: where it should.
        policy: the measure q.
        error: by which the engine's logits may be off.
        batch_size: draws that the engine computes together; None when it does not tell.
    """
    due = metrics.log_q_range(draws, nominal, policy, error)
    return [
        *structure.structure_findings(answers, tokenizer, stopping),
        structure.support(draws, nominal),
        *sampler_findings(draws),
        *place_findings(draws, stopping.max_new_tokens, batch_size),
        twins(with_tokens(answers), draws, due.most),
        metrics.reported_log_q(draws, nominal.engine_logqs, due),
        *([] if nominal.gains is None else bet_findings(evidence(nominal.gains), error.nats)),
    ]
