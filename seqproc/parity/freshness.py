"""The canary: a few tokens of an engine, scored again, to catch weights that it should not have.

A fingerprint says that an engine's weights changed; the canary says that they are the scorer's. It
takes seconds, and is meant for after every update. Knows the engine contract and the scorer.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np

from seqproc.engines.answers import described, name_of
from seqproc.engines.base import Engine, Request, StoppingRule
from seqproc.errors import EngineError, SequenceError
from seqproc.models import vocab_size
from seqproc.models.parameters import ParamMapping
from seqproc.parity.draws import sample, token_sequences
from seqproc.parity.logit_error import logit_error_of, require_logit_error, tolerance
from seqproc.parity.scoring import score_nominal
from seqproc.parity.verdict import Finding, Link
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer

_NUM_TOKENS = 8  # of each prompt


def canary(
    engine: Engine,
    scorer: TeacherForcingScorer,
    prompts: Sequence[Sequence[int]],
    *,
    override: ParamMapping | None = None,
    logit_error: float | None = None,
) -> Finding:
    """Whether an engine holds the scorer's weights, by a few greedy tokens and their log q.

    Each greedy token must be one that the scorer's logits could have as the largest, when each is
    off by the error; and where the engine reports log q of sampled tokens, these must agree.

    Args:
        engine: to be tested.
        scorer: its model is the truth.
        prompts: token ids; a handful is enough.
        override: parameters that the engine was given; None for the model's own.
        logit_error: by which each logit may be off [nats]; None for what goes with its dtype.

    Returns:
        A finding with p-value 1, or 0 when the engine has other weights.

    Raises:
        ConfigError: a logit error that is none.
        SequenceError: no prompts, or one without tokens or with an id that the model lacks.
        EngineError: when the engine fails or breaks its contract.
    """
    requests = _requests(prompts, vocab_size(scorer.model))
    require_logit_error(logit_error)
    stopping = StoppingRule(max_new_tokens=_NUM_TOKENS, eos_token_ids=scorer.eos_token_ids)
    wrong, total, worst = 0, 0, 0.0
    for policy in (SamplingPolicy(do_sample=False), SamplingPolicy()):
        answers = sample(
            engine,
            requests,
            range(len(requests)),
            policy,
            stopping,
            vocabulary=vocab_size(scorer.model),
        )
        error = logit_error_of(
            described(engine), logit_error, scorer, token_sequences(answers), override
        )
        draws, nominal = score_nominal(answers, scorer, policy, error.nats, override=override)
        bad = ~nominal.is_reachable
        if policy.do_sample and nominal.engine_logqs is not None:
            gaps = np.abs(nominal.engine_logqs - draws.logqs)
            gaps[np.isnan(nominal.engine_logqs)] = 0.0  # not reported
            bad |= ~(gaps <= tolerance(error.nats, policy))
            worst = float(gaps.max())
        wrong, total = wrong + int(bad.sum()), total + len(bad)
    return Finding(
        name="canary",
        link=Link.WEIGHTS,
        p_value=0.0 if wrong else 1.0,
        statistic=float(wrong),
        detail=f"{wrong} of {total} tokens are not those of the scorer's weights; log q of sampled "
        f"ones are off by up to {worst:.2g} nats"
        + ("" if error.told is None else f"; {error.told}"),
    )


def _requests(prompts: Sequence[Sequence[int]], vocabulary: int | None) -> list[Request]:
    beyond = math.inf if vocabulary is None else vocabulary
    try:
        ids = [tuple(operator.index(token) for token in prompt) for prompt in prompts]
    except TypeError as error:
        raise SequenceError(
            f"a canary needs prompts, each a sequence of token ids, integers: {error}"
        ) from error
    if not ids or not all(prompt and 0 <= min(prompt) <= max(prompt) < beyond for prompt in ids):
        raise SequenceError(
            "a canary needs prompts, each of one or more token ids in "
            f"[0, {beyond}); got {len(ids)} prompts of {sorted(set(map(len, ids)))} tokens"
        )
    return [Request(index=i, prompt_ids=prompt, seed=i) for i, prompt in enumerate(ids)]


def require_weights(
    engine: Engine,
    scorer: TeacherForcingScorer,
    prompts: Sequence[Sequence[int]],
    *,
    override: ParamMapping | None = None,
    logit_error: float | None = None,
) -> None:
    """Raise when the `canary` finds that the engine holds other weights than the scorer.

    Raises:
        EngineError: the engine's weights are stale, or were never those of the scorer.
    """
    found = canary(engine, scorer, prompts, override=override, logit_error=logit_error)
    if found.p_value == 0:
        raise EngineError(
            f"engine {name_of(engine)!r} does not sample with the scorer's weights: "
            f"{found.detail}. Give it the current ones with engine.load_weights(...)"
        )
