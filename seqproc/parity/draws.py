"""An engine's draws, and what is known of each of their tokens.

Knows the engine contract; the tests that read a `Draws` do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqproc._util.progress import progress_bar
from seqproc.engines.answers import ask, name_of
from seqproc.engines.base import Completion, Engine, Request, StoppingRule
from seqproc.errors import EngineError
from seqproc.parity.betting.evidence import Gains
from seqproc.parity.findings.replay import ReplayedTokens
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TokenSequence

# Legend: D draws, N tokens of all draws together, K bins of ranks, B exponents.

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request and what the engine made of it."""

    request: Request
    prompt: int  # number of the prompt; draws of one prompt have it in common
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """D draws of N tokens in all, scored under one distribution; nats."""

    prompts: NDArray[np.int64]  # [D]
    lengths: NDArray[np.int64]  # [D] tokens of each draw
    ended_by_eos: NDArray[np.bool_]  # [D] whether the last token is an EOS
    logqs: Floats  # [N] log q(y); −∞ outside the support
    mass_before: Floats  # [N] q of the tokens before y, in order of falling probability
    mass_below: Floats  # [N] q of the tokens of smaller id
    ranks: NDArray[np.int64]  # [N]
    entropies: Floats  # [N] H(q)
    variances: Floats  # [N] Var_q[log q]
    rank_masses: Floats  # [N, K]
    last_probs: Floats  # [N] q of the last token kept
    is_last: NDArray[np.bool_]  # [N]
    eos_probs: Floats  # [N]
    special_probs: Floats  # [N] q of all special ids together
    is_special: NDArray[np.bool_]  # [N] whether y is one of them
    stop_probs: Floats  # [N] q of all ids together that may complete a stop string
    is_stop: NDArray[np.bool_]  # [N] whether y is one of them
    rare_probs: Floats  # [N] q of all rare tokens together
    first_ids: NDArray[np.int64]  # [N] the most likely token
    log_powers: Floats  # [N, B] log Σ q^β of every exponent β
    randomiser: Floats  # [N] uniform on (0, 1), of the test and not of the engine

    @property
    def starts(self) -> NDArray[np.int64]:
        """Index of the first token of each draw, ``[D]``."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def steps(self) -> NDArray[np.int64]:
        """Step of each token within its draw, from 0, ``[N]``."""
        return np.arange(len(self.logqs)) - np.repeat(self.starts, self.lengths)

    @property
    def owners(self) -> NDArray[np.int64]:
        """Number of each token's draw, ``[N]``."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def some(self, first: int, last: int) -> Draws:
        """The draws from ``first`` up to ``last``, and their tokens."""
        draws, starts = slice(first, last), [*self.starts, len(self.logqs)]
        tokens = slice(starts[first], starts[min(last, len(self.lengths))])
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Draws(**{n: v[draws if n in _PER_DRAW else tokens] for n, v in values.items()})

    def of_tokens(self) -> dict[str, NDArray[Any]]:
        """The columns that have a row for each token, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _PER_DRAW}

    @staticmethod
    def concatenate(parts: Sequence[Draws]) -> Draws:
        """All draws of several, in their order."""
        return Draws(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Draws)}
        )

    @property
    def in_support(self) -> NDArray[np.bool_]:
        """``[N]``."""
        return np.isfinite(self.logqs)

    @property
    def uniforms(self) -> Floats:
        """The randomised transform of every token, ``[N]``: uniform iff y was drawn from q."""
        return self._transform(self.mass_before)

    @property
    def uniforms_by_id(self) -> Floats:
        """The same with tokens in the order of their ids, ``[N]``.

        Randomness used twice shows here also where the distributions differ: a sampler that goes
        by ids, as all do, then lands at like places.
        """
        return self._transform(self.mass_below)

    def _transform(self, mass: Floats) -> Floats:
        return np.minimum(mass + self.randomiser * np.exp(self.logqs), 1.0)


_PER_DRAW = ("prompts", "lengths", "ended_by_eos")  # columns of `Draws`


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Tokens that the test drew from q itself, one in the context of each token."""

    ids: NDArray[np.int64]  # [N]
    logqs: Floats  # [N] nats

    @staticmethod
    def concatenate(parts: Sequence[Controls]) -> Controls:
        """Those of all draws of several."""
        return Controls(
            ids=np.concatenate([part.ids for part in parts]),
            logqs=np.concatenate([part.logqs for part in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NominalScores:
    """What the policy's own logits tell of the same tokens, beyond q; ``[N]``."""

    logprobs: Floats  # log p_raw(y), nats
    mass_before: Floats  # under p, before any cut; the support is where it is < top_p
    head_mass: Floats  # of the support, under p
    cut_margin: Floats  # last kept − first dropped, nats
    is_reachable: NDArray[np.bool_]  # logits within the stated error could have y in the support
    is_settled: NDArray[np.bool_]  # logits within the stated error have the same support
    engine_logqs: Floats | None  # as the engine reported them, NaN where it did not; None: never
    gains: Gains | None = None  # of bets on other distributions; None when none were made
    controls: Controls | None = None  # None when none were asked for
    replayed: ReplayedTokens | None = None  # None when the engine's noise cannot be computed again

    @staticmethod
    def concatenate(parts: Sequence[NominalScores]) -> NominalScores:
        """Those of all tokens of several, which were read in the same way."""
        optional = ("engine_logqs", "gains", "controls", "replayed")
        names = [field.name for field in fields(NominalScores) if field.name not in optional]
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
        gains = [part.gains for part in parts if part.gains is not None]
        controls = [part.controls for part in parts if part.controls is not None]
        replayed = [part.replayed for part in parts if part.replayed is not None]
        return NominalScores(
            engine_logqs=_reported([part.engine_logqs for part in parts], parts),
            gains=Gains.concatenate(gains) if gains else None,
            controls=Controls.concatenate(controls) if controls else None,
            replayed=ReplayedTokens.concatenate(replayed) if replayed else None,
            **arrays,
        )


def _reported(logqs: Sequence[Floats | None], parts: Sequence[NominalScores]) -> Floats | None:
    """What was reported of the tokens of all parts; None when nothing was of any."""
    if all(one is None for one in logqs):
        return None
    sizes = [len(part.logprobs) for part in parts]
    return np.concatenate(
        [np.full(n, np.nan) if one is None else one for one, n in zip(logqs, sizes, strict=True)]
    )


def sample(
    engine: Engine,
    requests: Sequence[Request],
    prompts: Sequence[int],
    policy: SamplingPolicy,
    stopping: StoppingRule,
    *,
    vocabulary: int | None = None,
) -> list[Answer]:
    """Have an engine answer every request.

    Args:
        engine: samples.
        requests: D of them, each with an index of its own.
        prompts: ``[D]``, the number of each request's prompt.
        policy: to sample under.
        stopping: where responses end.
        vocabulary: V, which ids are held against; None when it is not known.

    Returns:
        D answers in the order of the requests.

    Raises:
        EngineError: what it sends is not what the contract says.
    """
    completions = ask(engine, requests, policy, stopping, vocabulary=vocabulary, same_prompts=False)
    told = _progress(completions, len(requests), f"sampling with {name_of(engine)}")
    found = {completion.index: completion for completion in told}
    return [
        Answer(request=request, prompt=prompt, completion=found[request.index])
        for request, prompt in zip(requests, prompts, strict=True)
    ]


def _progress(completions: Iterable[Completion], total: int, title: str) -> Iterable[Completion]:
    with progress_bar(total, title, unit="draw") as bar:
        for completion in completions:
            bar.update()
            yield completion


def with_tokens(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that hold a token.

    Raises:
        EngineError: none does.
    """
    scored = [answer for answer in answers if answer.completion.token_ids]
    if not scored:
        raise EngineError(
            f"none of {len(answers)} answers holds a token: there is nothing to score"
        )
    return scored


def token_sequences(answers: Sequence[Answer]) -> list[TokenSequence]:
    """What is scored of the answers that hold a token."""
    return [
        TokenSequence(
            prompt_ids=torch.tensor(answer.request.prompt_ids),
            response_ids=torch.tensor(answer.completion.token_ids),
        )
        for answer in answers
        if answer.completion.token_ids
    ]
