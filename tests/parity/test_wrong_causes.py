"""Engines of other weights or prompts: no wrong cause is said to explain them; the right one is.

Deterministic (fixed seeds). 256 draws of a small random model, 8 of each prompt.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.broken import COLD, HOT, WHOLE
from helpers.faults import FaultyEngine, Places, biased, hotter, of_key, repeating
from helpers.gallery import with_rounded_weights
from helpers.parity_range import Range, range_of
from seqproc.parity import Check, Suspect
from seqproc.policy import SamplingPolicy

DRAWS = 256
CASES = pytest.mark.parametrize(
    ("policy", "silent"),
    [(WHOLE, True), (COLD, False)],
    ids=["whole, silent", "cold, own log q"],
)


def perturbed(model: Any, strength: float, seed: int = 1) -> Any:
    """Each weight a step away, of a share of its parameter's spread."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(strength * parameter.std().nan_to_num() * step)
    return other


def parameters_of(model: Any) -> Callable[[], dict[str, Any]]:
    return lambda: dict(model.named_parameters())


def explained(check: Check) -> list[str]:
    return [cause.description for cause in check.causes if cause.explains]


def told(check: Check) -> list[Any]:
    return [(c.description, c.explains, c.contenders, c.detail) for c in check.causes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "silent", "strength"),
    [
        (WHOLE, True, 0.01),
        (WHOLE, True, 0.02),
        (WHOLE, True, 0.03),
        (WHOLE, True, 0.3),
        (WHOLE, False, 0.02),
        (COLD, True, 0.01),
        (HOT, True, 0.1),
        (HOT, False, 0.03),
    ],
)
def test_weights_of_another_checkpoint(
    small: Range, policy: SamplingPolicy, silent: bool, strength: float
) -> None:
    other = perturbed(small.model, strength)
    engine = FaultyEngine(other, small.tokenizer, silent=silent)
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    assert not explained(found), told(found)
    assert not found.verdict.holds
    suspects = {
        "the checkpoint of the step before": parameters_of(other),
        "another one": parameters_of(perturbed(small.model, strength, seed=2)),
    }
    found = small.check(engine, num_draws=DRAWS, policy=policy, suspects=suspects)
    assert explained(found) == ["the checkpoint of the step before"], told(found)
    (known,) = (one for one in found.findings if one.name == "known faults")
    assert "the checkpoint of the step before" in known.detail


@pytest.mark.slow
@CASES
def test_a_system_prompt_that_is_missing(
    small: Range, policy: SamplingPolicy, silent: bool
) -> None:
    """The engine sees two tokens before the prompt that the scorer does not know of."""
    engine = FaultyEngine(
        small.model,
        small.tokenizer,
        silent=silent,
        sees=lambda request: (70, 71, *request.prompt_ids),
    )
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    assert not explained(found), told(found)
    suspects = {
        "with a system prompt": Suspect(prompt=lambda ids: (70, 71, *ids)),
        "with it twice": Suspect(prompt=lambda ids: (70, 71, 70, 71, *ids)),
    }
    found = small.check(engine, num_draws=DRAWS, policy=policy, suspects=suspects)
    assert explained(found) == ["with a system prompt"], told(found)
    assert found.causes[0].link == "prompt tokens"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "silent", "sees", "words"),
    [
        (WHOLE, True, lambda ids: ids[1:], "prompts without their first token"),
        (COLD, True, lambda ids: (ids[0], *ids), "prompts with their first token twice"),
        (HOT, False, lambda ids: ids[-2:], "prompts cut to their last 2 tokens"),
    ],
    ids=["without the first", "the first twice", "the last two"],
)
def test_common_mistakes_with_prompts_are_named(
    small: Range,
    policy: SamplingPolicy,
    silent: bool,
    sees: Callable[[tuple[int, ...]], tuple[int, ...]],
    words: str,
) -> None:
    engine = FaultyEngine(
        small.model,
        small.tokenizer,
        silent=silent,
        sees=lambda request: sees(request.prompt_ids),
    )
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    assert explained(found) == [words], told(found)


@pytest.mark.slow
@CASES
def test_rounded_weights(small: Range, policy: SamplingPolicy, silent: bool) -> None:
    """Whether or not the draws are enough, nothing else is said to explain them."""
    engine = FaultyEngine(with_rounded_weights(small.model), small.tokenizer, silent=silent)
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    allowed = {"weights rounded to bfloat16"}
    assert set(explained(found)) <= allowed, told(found)
    assert silent or set(explained(found)) == allowed, told(found)


@pytest.mark.slow
@CASES
def test_another_adapter(
    tiny_llama: Callable[..., Any], tiny_tokenizer: Any, policy: SamplingPolicy, silent: bool
) -> None:
    first, second = (_adapted(tiny_llama, seed) for seed in (1, 2))
    engine = FaultyEngine(second, tiny_tokenizer, silent=silent)
    found = range_of(first, tiny_tokenizer).check(engine, num_draws=DRAWS, policy=policy)
    assert not found.verdict.holds
    assert not explained(found), told(found)
    suspects = {"the adapter of yesterday": parameters_of(second)}
    found = range_of(first, tiny_tokenizer).check(
        engine, num_draws=DRAWS, policy=policy, suspects=suspects
    )
    assert explained(found) == ["the adapter of yesterday"], told(found)


def _adapted(tiny_llama: Callable[..., Any], seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(seed)
    return get_peft_model(tiny_llama(initializer_range=0.5), config).eval()


# ---------------------------------------------------------------------- two faults at once


@pytest.mark.slow
@pytest.mark.parametrize("policy", [WHOLE, COLD], ids=str)
def test_two_faults_have_no_known_cause(small: Range, policy: SamplingPolicy) -> None:
    """Neither the higher temperature nor the shared seeds explain what both do."""
    engine = FaultyEngine(
        small.model,
        small.tokenizer,
        silent=True,
        distribution=hotter(1.3),
        uniform=lambda request, step: of_key(request.index // 2, step),
    )
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    assert not explained(found), told(found)


def test_what_a_cause_leaves_is_told(small: Range) -> None:
    engine = FaultyEngine(
        perturbed(small.model, 0.1), small.tokenizer, silent=True, distribution=repeating(1.2)
    )
    (cause,) = small.check(engine, num_draws=DRAWS, policy=WHOLE).causes
    assert cause.description == "another distribution, not a known one"
    assert "the nearest is: " in cause.detail
    assert "; what fails under it: " in cause.detail


@pytest.mark.slow
def test_one_of_two_banned_ids_does_not_explain_the_draws(small: Range) -> None:
    engine = FaultyEngine(
        small.model, small.tokenizer, silent=True, distribution=biased([50, 60], -math.inf)
    )
    check = small.check(engine, num_draws=384, policy=SamplingPolicy())
    (cause,) = check.causes
    assert not cause.explains, cause
    assert "never sampled; what fails under it: known faults" in cause.detail
    assert re.search(r"the nearest beside it: token id (50|60) never sampled", cause.detail)


def test_lengths_alone_are_no_cause(small: Range) -> None:
    """EOS at once, always: seen by how long draws are, and by their tokens."""

    def at_once(places: Places) -> torch.Tensor:
        log_r = torch.full_like(places.logits, -math.inf)
        log_r[:, 0] = 0.0
        return log_r

    engine = FaultyEngine(small.model, small.tokenizer, silent=True, distribution=at_once)
    check = small.check(engine, num_draws=64, policy=SamplingPolicy())
    assert "lengths" in check.verdict.failed
    (cause,) = check.causes
    assert cause.link != "text and stop"
