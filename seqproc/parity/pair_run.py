"""`run_pair`: two engines side by side, over draws of the first on one dataset; one report.

Knows the processor's parts and `pair`; not how a report is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from seqproc._util import strict_json
from seqproc.engines import Engine
from seqproc.engines.answers import described, distributions_of
from seqproc.engines.base import NO_DISTRIBUTIONS, Request, TellsDistributions
from seqproc.engines.registry import engine_class
from seqproc.errors import ConfigError, EngineError
from seqproc.parity.draws import sample
from seqproc.parity.pair import (
    NUM_ROWS,
    Pair,
    Place,
    ScorerDistributions,
    compare_rows,
    spread_places,
)
from seqproc.parity.run import EngineChoice, deal, require_choices, start
from seqproc.policy import SamplingPolicy
from seqproc.processor import SequenceProcessor

SCORER = "scorer"  # as the second of a pair


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """All comparisons of one call."""

    model: str
    seed: int
    engines: tuple[dict[str, Any], ...]  # the two, as they describe themselves
    pairs: tuple[Pair, ...]  # one per policy

    def to_json(self) -> str:
        """Strict JSON."""
        return strict_json.dumps(dataclasses.asdict(self))


def run_pair(
    processor: SequenceProcessor,
    engines: Sequence[EngineChoice],
    prompts: Sequence[str],
    policies: Sequence[SamplingPolicy],
    *,
    num_draws: int,
    num_rows: int = NUM_ROWS,
    seed: int = 0,
    on_pair: Callable[[Pair], object] | None = None,
) -> PairReport:
    """Compare two engines along draws of the first; one engine lives at a time.

    The distributions of the first are kept meanwhile: ``num_rows`` times V numbers of 8 bytes for
    each policy.

    Args:
        processor: brings the model, the scorer and where responses end; its own engine is unused.
        engines: two of them. `SCORER` as the name of the second stands for the scorer.
        prompts: the draws are dealt out to them evenly, each prompt's next to each other.
        policies: what to sample under.
        num_draws: of the first engine under each policy.
        num_rows: contexts that are compared under each policy, evenly spread over all tokens.
        seed: of the draws.
        on_pair: called as each policy is done.

    Raises:
        ConfigError: not two different engines, no policy, or a number that is not ≥ 1.
        EngineError: an engine that cannot tell distributions (nothing is started then), cannot
            start, or fails.
        MissingDependencyError: a package that an engine needs is not installed.
    """
    first, second = _two(engines)
    labels = engines[0].label, engines[1].label
    if not policies:
        raise ConfigError("there is no policy to sample under; give at least one")
    requests, owners = deal(processor, prompts, num_draws, seed)
    with start(first, processor) as engine:
        followed = [
            _follow(engine, requests, owners, policy, processor, num_rows) for policy in policies
        ]
        descriptions = [described(engine)]
    pairs = []
    with _second(second, processor) as other:
        for one in followed:
            pair = compare_rows(
                labels,
                one.places,
                one.log_ps,
                distributions_of(other, one.contexts, one.policy),
                one.policy,
                processor.tokenizer,
            )
            pairs.append(pair)
            if on_pair is not None:
                on_pair(pair)
        descriptions.append(described(other) if isinstance(other, Engine) else {"name": SCORER})
    return PairReport(
        model=processor.source.name, seed=seed, engines=tuple(descriptions), pairs=tuple(pairs)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Followed:
    """What the first engine sampled under a policy, and would have sampled from, place by place."""

    policy: SamplingPolicy
    places: list[Place]
    log_ps: list[Tensor]  # of [V], as many as there are places

    @property
    def contexts(self) -> list[tuple[int, ...]]:
        return [place.ids for place in self.places]


def _follow(
    engine: Engine,
    requests: Sequence[Request],
    owners: Sequence[int],
    policy: SamplingPolicy,
    processor: SequenceProcessor,
    num_rows: int,
) -> _Followed:
    answers = sample(engine, requests, owners, policy, processor.stopping)
    places = spread_places(answers, num_rows)
    contexts = [place.ids for place in places]
    log_ps = list(distributions_of(engine, contexts, policy))
    return _Followed(policy=policy, places=places, log_ps=log_ps)


def _two(engines: Sequence[EngineChoice]) -> tuple[EngineChoice, EngineChoice]:
    """The two, with the options that their distributions take."""
    require_choices(engines)
    if len(engines) != 2:
        raise ConfigError(f"a pair is two engines, got {len(engines)}")
    if engines[0].name == SCORER:
        raise ConfigError(
            f"the first engine of a pair samples the draws, and {SCORER!r} does not sample: "
            "name it second"
        )
    first, second = map(_with_distributions, engines)
    return first, second


def _with_distributions(choice: EngineChoice) -> EngineChoice:
    """The choice, with what an engine has to be started with to tell distributions.

    Raises:
        EngineError: its class does not tell them.
    """
    if choice.name == SCORER:
        return choice
    cls = engine_class(choice.name)
    if cls.distributions is Engine.distributions:
        raise EngineError(NO_DISTRIBUTIONS.format(choice.name))
    return dataclasses.replace(choice, options={**cls.distribution_options, **choice.options})


@contextmanager
def _second(choice: EngineChoice, processor: SequenceProcessor) -> Iterator[TellsDistributions]:
    if choice.name == SCORER:
        yield ScorerDistributions(processor.scorer)
        return
    with start(choice, processor) as engine:
        yield engine
