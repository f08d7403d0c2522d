"""Two engines side by side: the whole distributions of next tokens after the same contexts.

Along draws of the first engine, with p the distribution that it samples the next token from and r
the second's,

    KL(p ‖ r) = Σ_y p(y) (log p(y) − log r(y)),

summed over the vocabulary. No sampled token enters but through its context, so the mean over
contexts is the Rao-Blackwell estimate of what `metrics.mismatch` estimates from sampled tokens, and
of less variance. Standard errors are clustered by prompt.

An engine reads a context by decoding the response in it, token by token behind its cache, where it
can: what it samples is decoded so. Otherwise the whole context is read at once, in a prefill, and a
fault of decode steps or of the cache does not show.

Knows distributions and draws; starts no engine.

References: Casella and Robert, "Rao-Blackwellisation of sampling schemes" (1996); Liang and Zeger,
"Longitudinal data analysis using generalized linear models" (1986), for clusters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from seqproc._util.progress import progress_bar
from seqproc.config import require_count
from seqproc.engines.answers import distributions_of, followed_by, name_of
from seqproc.engines.base import NO_FOLLOWING, Engine, Path, TellsDistributions
from seqproc.errors import ConfigError, EngineError
from seqproc.estimators import Estimate, mean
from seqproc.models.parameters import ParamMapping
from seqproc.models.tokenization import Tokenizer
from seqproc.parity.draws import Answer, with_tokens
from seqproc.parity.reading import Rows, read_columns
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TeacherForcingScorer, TokenSequence

# How contexts are read: their responses decoded token by token, or all at once.
Reading = Literal["decode", "prefill"]

NUM_ROWS = 256
_NUM_WORST = 10  # rows that a comparison shows
_NUM_TOKENS = 3  # of each
_SHOWN_CONTEXT = 16  # tokens
_CONTEXTS_AT_A_TIME = 32  # that the scorer reads

# Shapes: V tokens of the vocabulary.


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """What the two give one token."""

    token: int
    text: str
    first: float  # probability
    second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The two distributions after one context."""

    index: int  # of the request whose draw the context is part of
    prompt: int  # its number
    step: int  # tokens of the response in the context
    kl: float  # KL(first ‖ second), nats; ∞ where the second excludes a token of the first
    total_variation: float  # ½ Σ |first − second|
    largest_gap: float  # of log q, over the tokens that both can emit, nats; NaN of none
    num_first_only: int  # tokens that the first can emit and the second cannot
    num_second_only: int
    mass_first_only: float  # their probability under the first
    mass_second_only: float
    context: str  # its end, decoded
    tokens: tuple[TokenPair, ...]  # those whose probability differs most

    @property
    def has_same_support(self) -> bool:
        """Whether both can emit the same tokens."""
        return self.num_first_only == self.num_second_only == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two engines under one policy, over rows of the first one's draws."""

    engines: tuple[str, str]
    policy: SamplingPolicy
    readings: tuple[Reading, Reading]  # how each read the contexts
    num_draws: int
    num_prompts: int  # that the rows are of; the clusters of the standard errors
    num_rows: int
    kl: Estimate | None  # mean over the rows where it is finite, nats per token; None: nowhere
    num_infinite: int  # rows in which the second excludes a token of the first
    total_variation: Estimate  # mean over all rows
    largest_gap: float  # of all rows, nats; NaN where no row has a token that both can emit
    num_same_support: int  # rows
    worst: tuple[Row, ...]  # by total variation, the largest first


class ScorerDistributions:
    """The scorer in the place of an engine: its q after each context.

    Args:
        scorer: in the precision of its forward without gradients.
        override: parameters to score at; None for the model's own.
    """

    name = "scorer"

    def __init__(self, scorer: TeacherForcingScorer, override: ParamMapping | None = None) -> None:
        self._scorer = scorer
        self._override = override

    def distributions(
        self, contexts: Sequence[Sequence[int]], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        """log q of every id after each context; see `Engine.distributions`."""
        for start in range(0, len(contexts), _CONTEXTS_AT_A_TIME):
            yield from self._read(contexts[start : start + _CONTEXTS_AT_A_TIME], policy)

    def _read(self, contexts: Sequence[Sequence[int]], policy: SamplingPolicy) -> Iterator[Tensor]:
        def columns_of(logits: Tensor, _: Rows) -> dict[str, Tensor]:
            return {"log_q": log_q(logits.double(), policy)}

        # The last token of a response is never an input: any will do.
        sequences = [
            TokenSequence(prompt_ids=torch.tensor(context), response_ids=torch.tensor([0]))
            for context in contexts
        ]
        for columns in read_columns(self._scorer, sequences, columns_of, override=self._override):
            yield columns["log_q"][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A context: the prompt and some first tokens of an answer."""

    answer: Answer
    step: int  # tokens of the response in it

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids."""
        return (*self.answer.request.prompt_ids, *self.answer.completion.token_ids[: self.step])


def spread_places(answers: Sequence[Answer], num_rows: int = NUM_ROWS) -> list[Place]:
    """Places that lie evenly among the sampled tokens of all answers, one after the other.

    Args:
        answers: from `draws.sample`; those without a token are left out.
        num_rows: how many; all places, where there are fewer.

    Raises:
        EngineError: no answer holds a token.
        ConfigError: num_rows is no whole number ≥ 1.
    """
    require_count("num_rows", num_rows)
    every = [
        Place(answer=answer, step=step)
        for answer in with_tokens(answers)
        for step in range(len(answer.completion.token_ids))
    ]
    number = min(num_rows, len(every))
    return [every[(2 * row + 1) * len(every) // (2 * number)] for row in range(number)]


def reading_of(engine: TellsDistributions, wanted: Reading | None = None) -> Reading:
    """How an engine is to read contexts: as is wanted, or by decoding where it can.

    The scorer, and whatever else is no engine, decodes nothing.

    Raises:
        EngineError: decoding is wanted of an engine that cannot decode given tokens.
        ConfigError: the reading that is wanted is none.
    """
    if wanted is not None and wanted not in get_args(Reading):
        known = " or ".join(map(repr, get_args(Reading)))
        raise ConfigError(
            f"a reading must be {known}, or None for the engine's own; got {wanted!r}"
        )
    if not isinstance(engine, Engine):
        return "prefill"
    if wanted == "decode" and not engine.can_follow:
        raise EngineError(NO_FOLLOWING.format(name_of(engine)))
    return wanted or ("decode" if engine.can_follow else "prefill")


def read_places(
    engine: TellsDistributions, places: Sequence[Place], policy: SamplingPolicy, reading: Reading
) -> Iterator[Tensor]:
    """log q ``[V]`` after each place, float64, nats; told on the way how many are read.

    Args:
        engine: tells them.
        places: those of one answer behind one another, in order of their steps.
        policy: to read under.
        reading: from `reading_of`.
    """
    if reading == "decode":
        assert isinstance(engine, Engine)
        values = followed_by(engine, paths_of(places), policy)
    else:
        values = distributions_of(engine, [place.ids for place in places], policy)
    title = f"contexts by {name_of(engine)}, {reading}"
    with progress_bar(len(places), title, unit="context") as bar:
        for one in values:
            bar.update()
            yield one


def paths_of(places: Sequence[Place]) -> list[Path]:
    """The places of each answer, which stand behind one another, as one path."""
    return [
        Path(
            prompt_ids=tuple(answer.request.prompt_ids),
            response_ids=tuple(answer.completion.token_ids),
            steps=tuple(place.step for place in some),
        )
        for answer, some in _by_answer(places)
    ]


def _by_answer(places: Sequence[Place]) -> Iterator[tuple[Answer, list[Place]]]:
    for _, some in itertools.groupby(places, key=lambda place: id(place.answer)):
        own = list(some)
        yield own[0].answer, own


def compare_distributions(
    first: TellsDistributions,
    second: TellsDistributions,
    answers: Sequence[Answer],
    policy: SamplingPolicy,
    tokenizer: Tokenizer,
    *,
    num_rows: int = NUM_ROWS,
    readings: tuple[Reading | None, Reading | None] = (None, None),
) -> Pair:
    """Compare what two engines would sample next, along the same draws.

    Args:
        first: p; for KL(p ‖ r) as an expectation over its own draws, the answers are its own.
        second: r; `ScorerDistributions` puts the scorer in its place.
        answers: from `draws.sample`, or any others whose tokens are to be followed.
        policy: of both.
        tokenizer: decodes what is shown.
        num_rows: contexts that are compared, evenly spread over all tokens of the answers.
        readings: how each engine reads them; None for decoding where it can.

    Raises:
        EngineError: one of them cannot give distributions (the message says what remains), or not
            as is wanted; it fails, or gives what is none; the two have vocabularies of different
            sizes; no answer holds a token.
        ConfigError: num_rows is no whole number ≥ 1, a reading is none, or the policy is greedy.
    """
    if not policy.do_sample:
        raise ConfigError("a pair needs a policy that samples: greedy decoding has no distribution")
    places = spread_places(answers, num_rows)
    how = reading_of(first, readings[0]), reading_of(second, readings[1])
    return compare_rows(
        (name_of(first), name_of(second)),
        places,
        read_places(first, places, policy, how[0]),
        read_places(second, places, policy, how[1]),
        policy,
        tokenizer,
        how,
    )


def compare_rows(
    names: tuple[str, str],
    places: Sequence[Place],
    first: Iterable[Tensor],
    second: Iterable[Tensor],
    policy: SamplingPolicy,
    tokenizer: Tokenizer,
    readings: tuple[Reading, Reading],
) -> Pair:
    """Compare distributions that were got one after the other.

    Args:
        names: of the engines.
        places: at least one.
        first: log q ``[V]`` after each of the places, as from `read_places`.
        second: the same of the second engine.
        policy: of both.
        tokenizer: decodes what is shown.
        readings: how each read the contexts.

    Raises:
        EngineError: the two have vocabularies of different sizes.
    """
    rows = [
        _row(place, *_of_one_size(names, p, r), tokenizer)
        for place, p, r in zip(places, first, second, strict=True)
    ]
    finite = [row for row in rows if math.isfinite(row.kl)]
    kl = mean([r.kl for r in finite], clusters=[r.prompt for r in finite]) if finite else None
    prompts = [row.prompt for row in rows]
    return Pair(
        engines=names,
        policy=policy,
        readings=readings,
        num_draws=len({row.index for row in rows}),
        num_prompts=len(set(prompts)),
        num_rows=len(rows),
        kl=kl,
        num_infinite=len(rows) - len(finite),
        total_variation=mean([row.total_variation for row in rows], clusters=prompts),
        largest_gap=max(
            (row.largest_gap for row in rows if not math.isnan(row.largest_gap)), default=math.nan
        ),
        num_same_support=sum(row.has_same_support for row in rows),
        worst=tuple(sorted(rows, key=lambda row: -row.total_variation)[:_NUM_WORST]),
    )


def _of_one_size(names: tuple[str, str], p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    if len(p) != len(r):
        raise EngineError(
            f"{names[0]} has a vocabulary of {len(p)} tokens and {names[1]} one of {len(r)}: "
            "distributions compare between engines on one model"
        )
    return p, r


def _row(place: Place, log_p: Tensor, log_r: Tensor, tokenizer: Tokenizer) -> Row:
    """Compare two log distributions ``[V]``, normalised in float64 before."""
    log_p, log_r = log_p.log_softmax(-1), log_r.log_softmax(-1)
    p, r = log_p.exp(), log_r.exp()
    by_first, by_second = log_p.isfinite(), log_r.isfinite()
    both = by_first & by_second
    gaps = (log_p - log_r)[both]
    first_only, second_only = by_first & ~by_second, by_second & ~by_first
    lost = float(p[first_only].sum())
    apart = (p - r).abs()
    shown = apart if apart.any() else p  # of equal ones, the likeliest
    return Row(
        index=place.answer.request.index,
        prompt=place.answer.prompt,
        step=place.step,
        kl=math.inf if lost > 0 else _kl(p[both], r[both], gaps) + float(r[second_only].sum()),
        total_variation=float(apart.sum()) / 2,
        largest_gap=float(gaps.abs().max()) if len(gaps) else math.nan,
        num_first_only=int(first_only.sum()),
        num_second_only=int(second_only.sum()),
        mass_first_only=lost,
        mass_second_only=float(r[second_only].sum()),
        context=tokenizer.decode(list(place.ids[-_SHOWN_CONTEXT:])),
        tokens=tuple(
            TokenPair(
                token=token,
                text=tokenizer.decode([token]),
                first=float(p[token]),
                second=float(r[token]),
            )
            for token in shown.topk(min(_NUM_TOKENS, len(p))).indices.tolist()
            if p[token] > 0 or r[token] > 0
        ),
    )


def _kl(p: Tensor, r: Tensor, gaps: Tensor) -> float:
    """Σ (p·log(p/r) − p + r), of which no term is negative: the rest sums to 0 with all tokens.

    Where p and r are nearly equal, it keeps the digits that Σ p·log(p/r) cancels.
    """
    return float((p * gaps - p + r).clamp(min=0).sum())
