"""An engine's draws, each token placed in the distribution that the scorer says it came from.

Knows the engine contract and the scorer; the tests that read a `Draws` know neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqproc._util.progress import progress_bar
from seqproc.engines.answers import ask, name_of
from seqproc.engines.base import Completion, Engine, Request, StoppingRule
from seqproc.engines.gumbel import seed_tensor
from seqproc.engines.noise import Noise
from seqproc.errors import EngineError
from seqproc.models.parameters import ParamMapping
from seqproc.parity.betting.book import Book
from seqproc.parity.betting.evidence import Gains
from seqproc.parity.findings.replay import ReplayedRows, ReplayedTokens, replay_rows
from seqproc.parity.positions import Cut, LogDistribution, Placement, cut, place
from seqproc.parity.reading import Reading, Rows, read_columns
from seqproc.policy import SamplingPolicy, log_q, token_log_p
from seqproc.scorers import TeacherForcingScorer, TokenSequence

# Legend: D draws, N tokens of all draws together, K bins of ranks, B exponents.

Floats = NDArray[np.float64]

# Float64 logits [R, V] and their rows to log q [R, V], −∞ outside the support. The sequences of the
# rows are numbered as the answers that hold a token are.
RowDistribution = Callable[[Tensor, Rows], Tensor]


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
    replayed: ReplayedTokens | None = None  # None when the engine's noise cannot be computed again

    @staticmethod
    def concatenate(parts: Sequence[NominalScores]) -> NominalScores:
        """Those of all tokens of several, which were read in the same way."""
        optional = ("engine_logqs", "gains", "replayed")
        names = [field.name for field in fields(NominalScores) if field.name not in optional]
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
        gains = [part.gains for part in parts if part.gains is not None]
        replayed = [part.replayed for part in parts if part.replayed is not None]
        return NominalScores(
            engine_logqs=_reported([part.engine_logqs for part in parts], parts),
            gains=Gains.concatenate(gains) if gains else None,
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


def score(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    distributions: Mapping[str, LogDistribution],
    *,
    override: ParamMapping | None = None,
    seed: int = 0,
) -> dict[str, Draws]:
    """Place every token in each of the distributions; one forward serves them all.

    Args:
        answers: from `sample`; those without a token are left out.
        scorer: the model.
        distributions: from float64 logits to log q, by name.
        override: parameters to score at; None for the model's own.
        seed: of the randomisation of the transform, which is the test's and not the engine's.
    """
    by_row = {name: partial(_of_logits, of) for name, of in distributions.items()}
    return score_rows(answers, scorer, by_row, override=override, seed=seed)


def _of_logits(of: LogDistribution, logits_RV: Tensor, _: Rows) -> Tensor:
    return of(logits_RV)


def score_rows(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    distributions: Mapping[str, RowDistribution],
    *,
    override: ParamMapping | None = None,
    seed: int = 0,
) -> dict[str, Draws]:
    """As `score`, for distributions that depend on which row it is as well."""
    answers, eos = with_tokens(answers), scorer.eos_token_ids

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        for name, of in distributions.items():
            columns |= _named(place(of(logits.double(), rows), rows.tokens, eos), f"{name}/")
        return columns

    columns = token_columns(answers, scorer, reading, override)
    return {name: _draws(answers, columns, name, eos, seed) for name in distributions}


def score_nominal(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    policy: SamplingPolicy,
    logit_error: float,
    *,
    noise: Noise | None = None,
    override: ParamMapping | None = None,
    seed: int = 0,
    bets: bool = True,
    special_token_ids: Sequence[int] = (),
    stop_token_ids: Sequence[int] = (),
) -> tuple[Draws, NominalScores]:
    """Place every token under the policy, and read what only the policy's own logits tell.

    Args:
        answers: from `sample`; those without a token are left out.
        scorer: the model.
        policy: the tokens were sampled under.
        logit_error: by which each logit may be off, nats.
        noise: that the engine draws with, to replay every token; None for no replay.
        override: parameters to score at; None for the model's own.
        seed: of the randomisation of the transform, which is the test's and not the engine's.
        bets: whether to bet on the distributions of the catalogue.
        special_token_ids: ids in [0, V) that are special, beside EOS.
        stop_token_ids: ids in [0, V) that may complete a stop string.
    """
    answers, eos = with_tokens(answers), scorer.eos_token_ids
    keys = _draw_keys(answers, scorer.device)
    book = _book(answers, policy, eos) if bets and policy.do_sample else None

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        wide = logits.double()
        log_q_RV = log_q(wide, policy)
        placed = place(log_q_RV, rows.tokens, eos, special_token_ids, stop_token_ids)
        own = {"logprobs": token_log_p(wide, rows.tokens)}
        own |= _named(cut(wide, rows.tokens, policy, logit_error))
        if noise is not None:
            seeds, lengths = keys[:, rows.sequences]
            values = noise.values(seeds, lengths, rows.steps, wide.shape[-1])
            replayed = replay_rows(wide, values, rows.tokens, policy, logit_error, noise.error)
            own |= _named(replayed)
        of_bets = {} if book is None else book.columns(wide, log_q_RV, placed, rows)
        return own | _named(placed, "q/") | of_bets

    columns = token_columns(answers, scorer, reading, override)
    own = {name: values for name, values in columns.items() if "/" not in name}
    names = ReplayedTokens.names()
    replayed = {name: own.pop(name) for name in names if name in own}
    draws = _draws(answers, columns, "q", eos, seed)
    reported = _engine_logqs(answers)
    nominal = NominalScores(
        engine_logqs=reported,
        gains=None
        if book is None
        else book.gains(
            columns,
            draws.logqs,
            draws.ranks,
            (draws.mass_below, draws.mass_before),
            draws.uniforms_by_id,
            reported,
        ),
        replayed=ReplayedTokens(**replayed) if replayed else None,
        **own,
    )
    return draws, nominal


def _book(answers: Sequence[Answer], policy: SamplingPolicy, eos: Sequence[int]) -> Book:
    return Book(
        [answer.request.prompt_ids for answer in answers],
        [answer.completion.token_ids for answer in answers],
        [answer.prompt for answer in answers],
        policy,
        eos,
    )


def _draw_keys(answers: Sequence[Answer], device: torch.device) -> Tensor:
    """What noise is a function of, besides the step: seeds, prompt lengths; int64 ``[2, D]``."""
    seeds = seed_tensor([answer.request.seed for answer in answers], device)
    lengths = [len(answer.request.prompt_ids) for answer in answers]
    return torch.stack([seeds, torch.tensor(lengths, device=device)])


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


def _named(record: Placement | Cut | ReplayedRows, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{field.name}": getattr(record, field.name) for field in fields(record)}


def token_columns(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    reading: Reading,
    override: ParamMapping | None,
) -> dict[str, Any]:
    """What is read of all tokens, in order of draw: arrays of N rows, by name.

    Answers without a token are left out.
    """
    answers = with_tokens(answers)
    sequences = token_sequences(answers)
    with progress_bar(len(answers), "scoring", unit="seq") as bar:
        found = read_columns(scorer, sequences, reading, override=override, progress=bar.update)
    return {name: torch.cat([one[name] for one in found]).numpy() for name in found[0]}


def _draws(
    answers: Sequence[Answer],
    columns: Mapping[str, Any],
    name: str,
    eos_token_ids: Sequence[int],
    seed: int,
) -> Draws:
    completions = [answer.completion for answer in answers]
    lengths = np.array([len(completion.token_ids) for completion in completions])
    own: dict[str, Any] = {
        column.removeprefix(f"{name}/"): values
        for column, values in columns.items()
        if column.startswith(f"{name}/")
    }
    return Draws(
        prompts=np.array([answer.prompt for answer in answers]),
        lengths=lengths,
        ended_by_eos=np.array([c.token_ids[-1] in eos_token_ids for c in completions]),
        randomiser=np.random.default_rng(seed).random(int(lengths.sum())),
        **own,
    )


def _engine_logqs(answers: Sequence[Answer]) -> Floats | None:
    completions = [answer.completion for answer in answers]
    if all(completion.logqs is None for completion in completions):
        return None
    unknown = float("nan")
    each = [[unknown] * len(c.token_ids) if c.logqs is None else c.logqs for c in completions]
    return np.concatenate([np.array(logqs, dtype=np.float64) for logqs in each])


def _progress(completions: Iterable[Completion], total: int, title: str) -> Iterable[Completion]:
    with progress_bar(total, title, unit="draw") as bar:
        for completion in completions:
            bar.update()
            yield completion
