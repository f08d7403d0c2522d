"""One engine's draws with all that is needed to judge them, and what it may hold or see instead.

Other weights: rounded ones, those without the adapter or the override, a caller's. Other prompts:
with a token more, or without some. Which it was is for `attribution` to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seqproc.engines.base import Engine, StoppingRule
from seqproc.errors import ConfigError
from seqproc.models.introspection import context_length
from seqproc.models.parameters import ParamMapping
from seqproc.parity.draws import Answer, Draws, NominalScores
from seqproc.parity.logit_error import LogitError, tolerance
from seqproc.parity.positions import LogDistribution
from seqproc.parity.verdict import FALSE_ALARMS, Link
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TeacherForcingScorer

Ids = tuple[int, ...]

_POWERS = 2  # of two, the largest ones, to which the longest prompt may have been cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """What an engine may hold, or see, in place of what the scorer scores.

    Raises:
        ConfigError: it changes nothing, or by something that cannot be called.
    """

    # To the parameters that it samples with, possibly partial, the others being the model's own.
    # None: those that the scorer scores at.
    parameters: Callable[[], ParamMapping] | None = None
    prompt: Callable[[Ids], Sequence[int]] | None = None  # from a prompt's token ids to its own

    def __post_init__(self) -> None:
        given = [one for one in (self.parameters, self.prompt) if one is not None]
        are_functions = all(callable(one) and not isinstance(one, nn.Module) for one in given)
        if not given or not are_functions:
            raise ConfigError(
                "a Suspect needs parameters, a prompt or both, each as a function; got "
                f"{_kind(self.parameters)} as parameters and {_kind(self.prompt)} as prompt. "
                "Parameters θ are given as lambda: θ"
            )

    @property
    def link(self) -> Link:
        """The first link of the chain that differs."""
        return Link.WEIGHTS if self.prompt is None else Link.PROMPT


def _kind(value: object) -> str:
    """What was given, without its value: parameters fill pages."""
    return "nothing" if value is None else f"a {type(value).__name__}"


Suspects = Mapping[str, Suspect | Callable[[], ParamMapping]]
"""What an engine may hold or see instead, by description; a function stands for parameters."""


def all_suspects(given: Suspects | None) -> dict[str, Suspect]:
    """Each of them as a `Suspect`.

    Raises:
        ConfigError: one is neither a `Suspect` nor a function, or they have no descriptions.
    """
    if not isinstance(given, Mapping | None) or not all(isinstance(n, str) for n in given or {}):
        raise ConfigError(
            "suspects must be a mapping from a description of each to a Suspect or a function, "
            'such as {"the step before": lambda: parameters}; got ' + _kind(given)
        )
    return {
        name: one if isinstance(one, Suspect) else Suspect(parameters=one)
        for name, one in (given or {}).items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One engine's draws and everything needed to score them again."""

    engine: Engine
    answers: Sequence[Answer]
    scorer: TeacherForcingScorer
    policy: SamplingPolicy
    stopping: StoppingRule
    draws: Draws
    nominal: NominalScores
    override: ParamMapping | None
    suspects: Mapping[str, Suspect]  # the caller's
    error: LogitError  # of a right engine
    false_alarms: float = FALSE_ALARMS

    @property
    def tolerance(self) -> float:
        """Of a reported log q, nats."""
        return tolerance(self.error.nats, self.policy)


def joined(parts: Sequence[Case]) -> Case:
    """The draws of several cases of one engine, in their order."""
    return replace(
        parts[0],
        answers=[answer for part in parts for answer in part.answers],
        draws=Draws.concatenate([part.draws for part in parts]),
        nominal=NominalScores.concatenate([part.nominal for part in parts]),
    )


def of_policy(policy: SamplingPolicy) -> LogDistribution:
    """The policy's q, as a function of logits."""
    return lambda logits: log_q(logits, policy)


# ---------------------------------------------------------------------- other weights


def other_weights(case: Case) -> dict[str, Suspect]:
    """Parameters that the engine may hold: those named by the caller first."""
    given = {name: one for name, one in case.suspects.items() if one.parameters is not None}
    own = {} if case.override is None else {"the model's own weights, not the override": dict}
    model = case.scorer.model
    known = {
        **all_suspects(own),
        **without_adapter(model),
        **_rounded(model, case.override),
    }
    return given | {name: one for name, one in known.items() if name not in given}


def without_adapter(model: nn.Module) -> dict[str, Suspect]:
    """A model with LoRA adapters, without them; nothing for a model that has none.

    LoRA adds B·A to a weight: without B it adds nothing.
    """
    added = {n: torch.zeros_like(p) for n, p in model.named_parameters() if ".lora_B." in n}
    return {"the model without its adapter": Suspect(parameters=lambda: added)} if added else {}


def _rounded(model: nn.Module, override: ParamMapping | None) -> dict[str, Suspect]:
    own = dict(model.named_parameters()) | dict(override or {})

    def rounded(dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: p.detach().to(dtype).to(p.dtype) for name, p in own.items()}

    return {
        f"weights rounded to {name}": Suspect(parameters=partial(rounded, dtype))
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
    }


# ---------------------------------------------------------------------- other prompts


def other_prompts(case: Case) -> dict[str, Suspect]:
    """Prompts that the engine may see: the caller's, and those of common mistakes.

    Of the latter, those that change none of the prompts are left out.
    """
    prompts = list(dict.fromkeys(tuple(a.request.prompt_ids) for a in case.answers))
    given = {name: one for name, one in case.suspects.items() if one.parameters is None}
    mistakes = {**_shorter(prompts), **_longer(case)}
    return given | {
        name: Suspect(prompt=change)
        for name, change in mistakes.items()
        if name not in given and any(change(prompt) != prompt for prompt in prompts)
    }


def _shorter(prompts: Sequence[Ids]) -> dict[str, Callable[[Ids], Ids]]:
    """Without the first token, without the beginning that all have, or cut to the last ones."""
    common = _common(prompts)
    below = (max(map(len, prompts)) - 1).bit_length() - 1  # 2^below is less than the longest has
    sizes = [1 << power for power in range(below, below - _POWERS, -1) if power >= 0]
    return {
        "prompts without their first token": partial(_from, 1),
        f"prompts without the {common} tokens that all begin with": partial(_from, common),
        **{f"prompts cut to their last {size} tokens": partial(_last, size) for size in sizes},
    }


def _common(prompts: Sequence[Ids]) -> int:
    """How many tokens all begin with; 0 where there is one prompt alone."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # of all, these differ the soonest
    alike = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(alike, min(len(first), len(last)))


def _from(start: int, prompt: Ids) -> Ids:
    """Without so many; a prompt that has no others stays as it is."""
    return prompt[start:] or prompt


def _last(size: int, prompt: Ids) -> Ids:
    return prompt[-size:]


def _longer(case: Case) -> dict[str, Callable[[Ids], Ids]]:
    """With BOS, or their first token, once more; where the model has room for it."""
    config: Any = getattr(case.scorer.model, "config", None)
    longest = max(len(a.request.prompt_ids) + len(a.completion.token_ids) for a in case.answers)
    if longest >= (context_length(config) or math.inf):
        return {}
    found: dict[str, Callable[[Ids], Ids]] = {
        "prompts with their first token twice": lambda prompt: (prompt[0], *prompt)
    }
    bos = getattr(config, "bos_token_id", None)
    if isinstance(bos, int):
        found["prompts with BOS before them"] = lambda prompt: (bos, *prompt)
    return found
