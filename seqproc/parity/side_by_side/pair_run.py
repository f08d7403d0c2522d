"""`run_pair`: two engines side by side, over draws of the first on one dataset; one report.

Knows the processor's parts, `pair` and `layers`; not how a report is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from seqproc._util import strict_json
from seqproc.config import require_count
from seqproc.engines import Engine
from seqproc.engines.answers import described
from seqproc.engines.base import NO_DISTRIBUTIONS, Request, TellsDistributions
from seqproc.engines.registry import engine_class, require_options
from seqproc.errors import ConfigError, EngineError, ModelError
from seqproc.parity.draws import sample
from seqproc.parity.run import EngineChoice, deal, require_choices, start
from seqproc.parity.side_by_side.layers import (
    FirstDifference,
    first_difference,
    first_difference_of_engine,
    require_ids,
)
from seqproc.parity.side_by_side.pair import (
    NUM_ROWS,
    Pair,
    Place,
    Reading,
    ScorerDistributions,
    compare_rows,
    read_places,
    reading_of,
    spread_places,
)
from seqproc.policy import SamplingPolicy
from seqproc.processor import SequenceProcessor

SCORER = "scorer"  # as the second of a pair
_NUM_READ_BY_LAYER = 4  # draws


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModel:
    """A model that the scorer's is held against, module by module."""

    name: str
    model: nn.Module


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Where the scorer's model and another, or an engine, part on the tokens of some draws."""

    first: str  # the scorer's model
    second: str  # the other model, or the engine's label
    num_draws: int  # that both read
    difference: FirstDifference | None  # None: no output differs, or none is told
    not_told: str | None = None  # why an engine does not tell what its layers return


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """All comparisons of one call."""

    model: str
    seed: int
    engines: tuple[dict[str, Any], ...]  # those that have started, as they describe themselves
    pairs: tuple[Pair, ...]  # one per policy
    layers: tuple[Layers, ...] = ()  # of the other model, and of engines, where asked for
    is_complete: bool  # False while comparisons are still to come

    def to_json(self) -> str:
        """Strict JSON."""
        return strict_json.dumps(dataclasses.asdict(self))


# Called with a report without comparisons once nothing is left to refuse, before an engine starts.
OnPairStart = Callable[[PairReport], object]
# Called after each policy with its comparison and the report so far.
OnPair = Callable[[Pair, PairReport], object]


def run_pair(
    processor: SequenceProcessor,
    engines: Sequence[EngineChoice],
    prompts: Sequence[str],
    policies: Sequence[SamplingPolicy],
    *,
    num_draws: int,
    num_rows: int = NUM_ROWS,
    seed: int = 0,
    readings: tuple[Reading | None, Reading | None] = (None, None),
    other: OtherModel | None = None,
    engine_layers: bool = False,
    on_start: OnPairStart | None = None,
    on_pair: OnPair | None = None,
) -> PairReport:
    """Compare two engines along draws of the first; one engine lives at a time.

    The distributions of the first are kept until the second has started: ``num_rows`` times V
    numbers of 8 bytes for each policy. With the scorer as the second, one policy is done after the
    other.

    Args:
        processor: brings the model, the scorer and where responses end; its own engine is unused.
        engines: two of them; one twice, where ``readings`` are two. `SCORER` as the name of the
            second stands for the scorer.
        prompts: the draws are dealt out to them evenly, each prompt's next to each other.
        policies: what to sample under; none of them greedy.
        num_draws: of the first engine under each policy.
        num_rows: contexts that are compared under each policy, evenly spread over all tokens.
        seed: of the draws.
        readings: how each engine reads contexts; None for decoding where it can.
        other: a model to hold the scorer's against, module by module, on some of the first
            policy's draws.
        engine_layers: whether to hold the scorer's model against what the layers of the engines
            return, on the same draws; where one does not tell, it is noted why.
        on_start: called once before an engine starts, when nothing is left to refuse: the time to
            replace a report of before.
        on_pair: called as each policy is done.

    Raises:
        ConfigError: not two different engines, no policy, a greedy one, or a number that is not
            ≥ 1.
        EngineError: an engine that cannot tell distributions (nothing is started then), cannot
            start, cannot read contexts as it is to, or fails.
        SequenceError: the other model does not embed a prompt's ids, or those that were sampled.
        ModelError: the other model has no modules of the names that the scorer's has.
        MissingDependencyError: a package that an engine needs is not installed.
    """
    first, second = _two(engines, may_be_one=readings[0] != readings[1])
    _require_sampling(policies)
    require_count("num_rows", num_rows)
    requests, owners = deal(processor, prompts, num_draws, seed)
    report = PairReport(
        model=processor.source.name, seed=seed, engines=(), pairs=(), is_complete=False
    )
    if other is not None:
        require_ids([request.prompt_ids for request in requests], other.model)
    if on_start is not None:
        on_start(report)
    pairing = _Pairing(
        processor=processor,
        labels=(engines[0].label, engines[1].label),
        requests=requests,
        owners=owners,
        policies=policies,
        num_rows=num_rows,
        readings=readings,
        engine_layers=engine_layers,
        on_pair=on_pair,
        report=report,
    )
    if second.name == SCORER:
        pairing.with_the_scorer(first)
    else:
        pairing.with_another(first, second)
    if other is not None:
        pairing.told(_of_model(processor, other, pairing.sequences))
    return dataclasses.replace(pairing.report, is_complete=True)


def _require_sampling(policies: Sequence[SamplingPolicy]) -> None:
    if not policies:
        raise ConfigError("there is no policy to sample under; give at least one")
    if not all(policy.do_sample for policy in policies):
        raise ConfigError(
            "a greedy policy puts all probability on one token and has no distribution to compare: "
            "compare a pair at a temperature, or test greedy tokens with seqproc parity --engines"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Followed:
    """What the first engine sampled under a policy, and would have sampled from, place by place."""

    policy: SamplingPolicy
    places: list[Place]
    log_ps: list[Tensor]  # of [V], as many as there are places
    reading: Reading  # how it told them

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """Prompts and responses of some draws, evenly chosen."""
        answers = list({id(place.answer): place.answer for place in self.places}.values())
        number = min(_NUM_READ_BY_LAYER, len(answers))
        some = [answers[row * len(answers) // number] for row in range(number)]
        return [(*one.request.prompt_ids, *one.completion.token_ids) for one in some]


@dataclass(slots=True, kw_only=True)
class _Pairing:
    """Two engines being compared: what that takes, and the report so far."""

    processor: SequenceProcessor
    labels: tuple[str, str]
    requests: Sequence[Request]
    owners: Sequence[int]
    policies: Sequence[SamplingPolicy]
    num_rows: int
    readings: tuple[Reading | None, Reading | None]
    engine_layers: bool
    on_pair: OnPair | None
    report: PairReport
    sequences: list[tuple[int, ...]] = field(default_factory=list)  # that models read by layer

    def with_the_scorer(self, first: EngineChoice) -> None:
        """One policy after the other."""
        with start(first, self.processor) as engine:
            self._describe(described(engine), {"name": SCORER})
            scorer = ScorerDistributions(self.processor.scorer)
            for followed in self._followed(engine):
                self._compare(followed, scorer)
            self._read_layers(engine, self.labels[0])

    def with_another(self, first: EngineChoice, second: EngineChoice) -> None:
        """All policies by the first, which then makes room for the second."""
        with start(first, self.processor) as engine:
            self._describe(described(engine))
            followed = list(self._followed(engine))
            self.sequences = followed[0].sequences
            self._read_layers(engine, self.labels[0])
        with start(second, self.processor) as another:
            self._describe(described(another))
            for one in followed:
                self._compare(one, another)
            self._read_layers(another, self.labels[1])

    def _followed(self, engine: Engine) -> Iterator[_Followed]:
        reading = reading_of(engine, self.readings[0])
        for policy in self.policies:
            answers = sample(engine, self.requests, self.owners, policy, self.processor.stopping)
            places = spread_places(answers, self.num_rows)
            log_ps = list(read_places(engine, places, policy, reading))
            yield _Followed(policy=policy, places=places, log_ps=log_ps, reading=reading)

    def _compare(self, one: _Followed, another: TellsDistributions) -> None:
        reading = reading_of(another, self.readings[1])
        pair = compare_rows(
            self.labels,
            one.places,
            one.log_ps,
            read_places(another, one.places, one.policy, reading),
            one.policy,
            self.processor.tokenizer,
            (one.reading, reading),
        )
        self.sequences = self.sequences or one.sequences
        self.report = dataclasses.replace(self.report, pairs=(*self.report.pairs, pair))
        if self.on_pair is not None:
            self.on_pair(pair, self.report)

    def _describe(self, *descriptions: dict[str, Any]) -> None:
        engines = (*self.report.engines, *descriptions)
        self.report = dataclasses.replace(self.report, engines=engines)

    def _read_layers(self, engine: Engine, label: str) -> None:
        if self.engine_layers:
            self.told(_of_engine(self.processor, engine, label, self.sequences))

    def told(self, layers: Layers) -> None:
        """Add what was told of layers."""
        self.report = dataclasses.replace(self.report, layers=(*self.report.layers, layers))


def _of_model(
    processor: SequenceProcessor, other: OtherModel, sequences: Sequence[Sequence[int]]
) -> Layers:
    return Layers(
        first=processor.source.name,
        second=other.name,
        num_draws=len(sequences),
        difference=first_difference(processor.scorer.model, other.model, sequences),
    )


def _of_engine(
    processor: SequenceProcessor, engine: Engine, label: str, sequences: Sequence[Sequence[int]]
) -> Layers:
    """What is told of the layers, or why nothing is: distributions are compared either way."""
    told = Layers(
        first=processor.source.name, second=label, num_draws=len(sequences), difference=None
    )
    try:
        found = first_difference_of_engine(processor.scorer.model, engine, sequences)
    except (EngineError, ModelError) as error:
        return dataclasses.replace(told, not_told=str(error))
    return dataclasses.replace(told, difference=found)


def _two(engines: Sequence[EngineChoice], *, may_be_one: bool) -> tuple[EngineChoice, EngineChoice]:
    """The two, with the options that their distributions take."""
    if not may_be_one:
        require_choices(engines)
    if len(engines) != 2:
        raise ConfigError(f"a pair is two engines, got {len(engines)}")
    if engines[0].name == SCORER:
        raise ConfigError(
            f"the first engine of a pair samples the draws, and {SCORER!r} does not sample: "
            "name it second"
        )
    if engines[1].name == SCORER and engines[1].options:
        raise ConfigError(
            f"{SCORER!r} is no engine and takes no options, got {engines[1].label!r}: its model "
            "and precision are those of the command"
        )
    first, second = map(_with_distributions, engines)
    return first, second


def _with_distributions(choice: EngineChoice) -> EngineChoice:
    """The choice, with what an engine has to be started with to tell distributions.

    Raises:
        EngineError: its class does not tell them, or has not the options.
    """
    if choice.name == SCORER:
        return choice
    cls = engine_class(choice.name)
    if cls.distributions is Engine.distributions:
        raise EngineError(NO_DISTRIBUTIONS.format(choice.name))
    require_options(choice.name, choice.options)
    return dataclasses.replace(choice, options={**cls.distribution_options, **choice.options})
