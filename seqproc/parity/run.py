"""`run_parity`: several engines and policies over the draws of one dataset, one report.

Knows the processor's parts and `check_engine`; not how a report is shown.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from seqproc._util import strict_json
from seqproc._util.printing import Facts, Printed
from seqproc._util.snippets import table
from seqproc.engines import Engine, create_engine
from seqproc.engines.base import Request
from seqproc.engines.noise import COUPLED, GREEDY
from seqproc.engines.registry import require_options
from seqproc.errors import ConfigError
from seqproc.parity.check import Check, check_engine, require_until
from seqproc.parity.findings.sampler import require_scipy
from seqproc.parity.sequential import Look, Until, in_rounds
from seqproc.parity.side_by_side.divergence import Comparison, compare
from seqproc.parity.suspects import Suspects, all_suspects
from seqproc.parity.verdict import FALSE_ALARMS, require_rate
from seqproc.policy import SamplingPolicy
from seqproc.processor import SequenceProcessor
from seqproc.prompts import draw_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """An engine to check, by name and options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As on the command line: ``vllm:sampler=coupled``."""
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def require_choices(engines: Sequence[EngineChoice]) -> None:
    """Refuse choices of which one would take another's place in a report.

    Raises:
        ConfigError: there is none, or two have one label.
    """
    labels = [choice.label for choice in engines]
    if not labels:
        raise ConfigError("there is no engine to check; name at least one")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"the choice of engines names an engine twice: {', '.join(twice)}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ParityReport(Printed):
    """All checks of one call, and the comparisons of coupled engines."""

    model: str
    seed: int
    checks: dict[str, list[Check]]  # by the engine's label, one per policy
    comparisons: list[Comparison]
    is_complete: bool  # False while checks are still to come

    def _facts(self) -> Facts:
        checks = [one for checks in self.checks.values() for one in checks]
        return {
            "holds": self.holds,
            "is_complete": None if self.is_complete else False,
            "is_decided": None if self.is_decided or not self.holds else False,
            "model": self.model,
            "engines": list(self.checks),
            "checks": len(checks),
            "failed": sum(not one.verdict.holds for one in checks) or None,
            "comparisons": len(self.comparisons) or None,
        }

    def _pieces(self) -> Iterable[str]:
        """A line for each check."""
        rows = [
            (label, repr(one.policy), "holds" if one.verdict.holds else "does not hold", _why(one))
            for label, checks in self.checks.items()
            for one in checks
        ]
        if rows:
            yield table("Checks", ("engine", "policy", "parity", "causes"), rows)

    @property
    def holds(self) -> bool:
        """Whether every engine passed under every policy, and every divergence is explained."""
        verdicts = [one.verdict.holds for checks in self.checks.values() for one in checks]
        return self.is_complete and all(verdicts) and all(one.holds for one in self.comparisons)

    @property
    def is_decided(self) -> bool:
        """Whether every engine that passed got its certificate, where one was asked for."""
        certificates = [
            one.certificate
            for checks in self.checks.values()
            for one in checks
            if one.verdict.holds and one.certificate is not None
        ]
        return self.is_complete and all(one.is_given for one in certificates)


def _why(check: Check) -> str:
    """The causes of a check that failed, or else the tests."""
    told = [cause.description for cause in check.causes] or list(check.verdict.failed)
    return "; ".join(told)


# Called with a report without checks once nothing is left to refuse, before an engine starts.
OnStart = Callable[[ParityReport], object]
# Called after each check, with the engine's label, the check and the report so far.
OnCheck = Callable[[str, Check, ParityReport], None]
# Called after each look of a check that goes on until it is decided.
OnParityLook = Callable[[str, SamplingPolicy, Look], None]


def run_parity(
    processor: SequenceProcessor,
    engines: Sequence[EngineChoice],
    prompts: Sequence[str],
    policies: Sequence[SamplingPolicy],
    *,
    num_draws: int,
    seed: int = 0,
    false_alarms: float = FALSE_ALARMS,
    on_start: OnStart | None = None,
    on_check: OnCheck | None = None,
    until: Until | None = None,
    on_look: OnParityLook | None = None,
    suspects: Suspects | None = None,
) -> ParityReport:
    """Check every engine under every policy on the same requests; one engine lives at a time.

    Args:
        processor: brings the model, the scorer and where responses end; its own engine is unused.
        engines: what to check.
        prompts: the draws are dealt out to them evenly, each prompt's next to each other.
        policies: what to sample under.
        num_draws: of each engine under each policy; with ``until`` the most of them.
        seed: of the draws.
        false_alarms: probability that one right engine fails under one policy.
        on_start: called once before an engine starts, when nothing is left to refuse: the time to
            replace a report of before.
        on_check: called as each check is done.
        until: when a check is decided, and ends; None for all draws.
        on_look: called after each look of such a check.
        suspects: what an engine may hold or see instead, as `check_engine` has it.

    Raises:
        ConfigError: no engine, or one twice; no policy; a greedy one with ``until``; fewer than two
            draws of each prompt, which leaves their independence untested; a rate of false alarms
            or a suspect that is none.
        EngineError: an engine that cannot start or fails.
        MissingDependencyError: scipy, or a package that an engine needs, is not installed.
    """
    require_scipy()
    require_rate(false_alarms)
    require_choices(engines)
    for choice in engines:
        require_options(choice.name, choice.options)
    if not policies:
        raise ConfigError("there is no policy to sample under; give at least one")
    for policy in policies:
        require_until(until, policy)
    suspects = all_suspects(suspects)
    if math.ceil(num_draws / max(len(prompts), 1)) < 2:
        raise ConfigError(
            f"{num_draws} draws of {len(prompts)} prompts leave fewer than two of each, and their "
            "independence untested; ask for more draws or fewer prompts"
        )
    requests, owners = deal(processor, prompts, num_draws, seed, in_order=until is None)
    checks: dict[str, list[Check]] = {}
    report = ParityReport(
        model=processor.source.name, seed=seed, checks=checks, comparisons=[], is_complete=False
    )
    if on_start is not None:
        on_start(report)
    for choice in engines:
        checks[choice.label] = done = []
        with start(choice, processor) as engine:
            for policy in policies:
                done.append(
                    check_engine(
                        engine,
                        processor.scorer,
                        processor.tokenizer,
                        requests,
                        owners,
                        policy,
                        processor.stopping,
                        false_alarms=false_alarms,
                        seed=seed,
                        until=until,
                        on_look=on_look and partial(on_look, choice.label, policy),
                        suspects=suspects,
                    )
                )
                if on_check is not None:
                    on_check(choice.label, done[-1], report)
    comparisons = _comparisons(processor, checks)
    return dataclasses.replace(report, comparisons=comparisons, is_complete=True)


def deal(
    processor: SequenceProcessor,
    prompts: Sequence[str],
    num_draws: int,
    seed: int,
    *,
    in_order: bool = True,
) -> tuple[list[Request], list[int]]:
    """The draws and the numbers of their prompts: prompt by prompt, or some of each in rounds."""
    per_prompt = math.ceil(num_draws / max(len(prompts), 1))
    seeds = [draw_seed(seed, i) for i in range(len(prompts) * per_prompt)]
    requests = processor.sampler.requests(prompts, seeds, per_prompt)
    order = range(len(requests)) if in_order else in_rounds(len(prompts), per_prompt)
    chosen = list(order)[:num_draws]
    return [requests[i] for i in chosen], [i // per_prompt for i in chosen]


def start(choice: EngineChoice, processor: SequenceProcessor) -> Engine:
    """Start an engine, with the batch size of the configuration where none was chosen."""
    engine = create_engine(choice.name, processor.source, **choice.options)
    if engine.batch_size is not None and "batch_size" not in choice.options:
        engine.batch_size = processor.config.gen_batch_size
    return engine


def _comparisons(processor: SequenceProcessor, checks: dict[str, list[Check]]) -> list[Comparison]:
    """Every two engines that drew with the same noise of ours, on the draws that both have."""
    return [
        compare(
            (first, second),
            one.answers[: other.num_draws],
            other.answers[: one.num_draws],
            processor.scorer,
            one.policy,
            max(one.logit_error, other.logit_error),
        )
        for first, second in itertools.combinations(checks, 2)
        for one, other in zip(checks[first], checks[second], strict=True)
        if one.noise == other.noise and one.noise in (COUPLED.name, GREEDY.name)
    ]


def to_json(report: ParityReport) -> str:
    """The report as strict JSON, without what was sampled."""
    return strict_json.dumps(
        {
            "holds": report.holds,
            "is_decided": report.is_decided,
            "is_complete": report.is_complete,
            "model": report.model,
            "seed": report.seed,
            "checks": {
                label: [_values(one) for one in done] for label, done in report.checks.items()
            },
            "comparisons": [
                {"holds": one.holds, **dataclasses.asdict(one)} for one in report.comparisons
            ],
        }
    )


def _values(check: Check) -> dict[str, Any]:
    values = dataclasses.asdict(dataclasses.replace(check, answers=()))
    del values["answers"]
    if check.certificate is not None:
        values["certificate"]["is_given"] = check.certificate.is_given
    return values
