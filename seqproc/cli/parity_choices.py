"""What `seqproc parity` is asked for: engines, a pair, policies, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seqproc.cli.build import parse_engine_options
from seqproc.cli.options import PolicyOptions
from seqproc.cli.pair import PairOptions, parse_readings
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from seqproc.parity.run import EngineChoice
    from seqproc.parity.sequential import Until
    from seqproc.policy import SamplingPolicy


def choices_of(engines: str | None, pair: str | None, of_pair: PairOptions) -> list[EngineChoice]:
    """What is tested, or the two that are compared.

    Raises:
        ConfigError: see `parse_engines` and `parse_pair`; or not one of the two options is given,
            or an option without the one that it goes with.
    """
    if pair is not None and engines is None:
        first, second = parse_readings(of_pair.read)
        return parse_pair(pair, is_read_in_two_ways=first != second)
    if engines is None or pair is not None:
        raise ConfigError(
            "give either --engines, to test engines against the scorer, or --pair, to put two side "
            "by side"
        )
    if of_pair.given:
        raise ConfigError(
            f"{of_pair.given[0]} goes with --pair; with --engines every token is tested"
        )
    return parse_engines(engines)


def refuse_tests(**options: object) -> None:
    """Raise `ConfigError` for an option of tests beside a pair."""
    for name, value in options.items():
        if value is not None and value != []:
            goes_with = "--engines and --until" if name == "level" else "--engines"
            option = name.replace("_", "-")
            raise ConfigError(
                f"--{option} goes with {goes_with}; a pair is compared, and not tested"
            )


def until_of(within: float | None, level: float | None) -> Until | None:
    """When to stop, as far as it was asked for.

    Raises:
        ConfigError: a level alone, or what `Until` refuses.
    """
    from seqproc.parity.sequential import Until

    if within is None:
        if level is not None:
            raise ConfigError("--level goes with --engines and --until, which is not given")
        return None
    return Until(within=within) if level is None else Until(within=within, level=level)


def parse_engines(
    text: str,
    given_as: str = "--engines",
    others: Sequence[str] = (),
    *,
    may_repeat: bool = False,
) -> list[EngineChoice]:
    """``hf,vllm:sampler=coupled`` as names and options.

    Args:
        text: the engines.
        given_as: the option of the command line that errors name.
        others: names that stand for something else than an engine, and are taken as well.
        may_repeat: whether one may come twice.

    Raises:
        ConfigError: an engine that there is not, one that comes twice, or an option that is none.
    """
    from seqproc.engines import engine_names
    from seqproc.engines.registry import GROUP
    from seqproc.parity.run import EngineChoice, require_choices

    choices, known = [], [*engine_names(), *others]
    for part in text.split(","):
        name, *options = part.strip().split(":")
        if name not in known:
            raise ConfigError(
                f"{given_as} names {name!r}; expected some of {', '.join(known)}, with commas "
                f"between; an installed package adds one under the entry-point group {GROUP}"
            )
        choices.append(
            EngineChoice(
                name=name,
                options=dict(parse_engine_options(options, f"an option of {name} in {given_as}")),
            )
        )
    if not may_repeat:
        require_choices(choices)
    return choices


def parse_pair(text: str, *, is_read_in_two_ways: bool = False) -> list[EngineChoice]:
    """``hf,vllm`` or ``hf,scorer`` as two choices; one engine twice, where it reads in two ways.

    Raises:
        ConfigError: see `parse_engines`; or they are not two.
    """
    from seqproc.parity.side_by_side.pair_run import SCORER

    choices = parse_engines(text, "--pair", [SCORER], may_repeat=is_read_in_two_ways)
    if len(choices) != 2:
        raise ConfigError(f"--pair takes two engines with a comma between, got {text!r}")
    return choices


def parse_policies(texts: list[str]) -> list[SamplingPolicy]:
    """``0.7,0.95`` as T = 0.7 and top_p = 0.95.

    Raises:
        ConfigError: not two numbers, not those of a policy, or a policy twice.
    """
    from seqproc.policy import SamplingPolicy

    policies = []
    for text in texts:
        try:
            temperature, top_p = (float(number) for number in text.split(","))
        except ValueError as error:
            raise ConfigError(f"--policy must be T,TOP_P such as 0.7,0.95, got {text!r}") from error
        policy = SamplingPolicy(temperature=temperature, top_p=top_p)
        if policy in policies:
            raise ConfigError(
                f"--policy {text} is given twice, or is an earlier one: leave one out"
            )
        policies.append(policy)
    return policies


def refuse_two_policies(policies: list[str] | None, policy: PolicyOptions) -> None:
    """Refuse a policy that is given in two ways.

    Raises:
        ConfigError: naming both.
    """
    others = {
        "--temperature": policy.temperature is not None,
        "--top-p": policy.top_p is not None,
        "--greedy": policy.greedy,
    }
    both = [name for name, is_given in others.items() if is_given]
    if policies and both:
        raise ConfigError(
            f"--policy stands in place of {' and '.join(both)}, and both are given: leave one out"
        )
