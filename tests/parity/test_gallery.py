"""Every engine of the gallery is caught, and its fault named; right engines pass.

Deterministic (fixed seeds); a right engine would fail a check with probability 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.gallery import GALLERY, Broken, ReferenceEngine, requests_of
from helpers.parity_range import POLICY, STOPPING, Range, range_of
from seqproc.engines import HFEngine
from seqproc.errors import ConfigError, SequenceError
from seqproc.parity import check_engine
from seqproc.policy import SamplingPolicy, log_q


@pytest.mark.parametrize(
    "policy",
    [SamplingPolicy(), SamplingPolicy(temperature=0.7, top_p=0.9), SamplingPolicy(do_sample=False)],
    ids=str,
)
def test_the_reference_passes(small: Range, policy: SamplingPolicy) -> None:
    found = small.check(ReferenceEngine(small.model, small.tokenizer), policy=policy)
    assert found.verdict.holds, (found.findings, found.causes)
    assert found.causes == ()
    assert found.mismatch is not None
    assert found.mismatch["max_abs"].value < 1e-4


def test_the_hugging_face_engine_passes(small: Range) -> None:
    engine = HFEngine(small.model, small.tokenizer, batch_size=640)
    found = small.check(engine)
    assert found.verdict.holds, (found.findings, found.causes)


@pytest.mark.slow
@pytest.mark.parametrize("broken", GALLERY, ids=lambda broken: broken.name)
def test_a_broken_engine_is_caught_and_its_fault_named(small: Range, broken: Broken) -> None:
    policy = SamplingPolicy(temperature=0.7, top_p=1.0 if "top_k" in broken.name else 0.9)
    found = small.check(
        broken.build(small.model, small.tokenizer), policy=policy, num_draws=broken.num_draws
    )
    assert not found.verdict.holds
    told = [(str(cause.link), cause.description, cause.detail) for cause in found.causes]
    assert {cause.link for cause in found.causes} == {broken.link}, told
    assert broken.words in found.causes[0].description, told
    assert found.causes[0].explains, told


def test_other_prompts_are_told_first(small: Range) -> None:
    engine = ReferenceEngine(
        small.model, small.tokenizer, prompt_of=lambda request: (1, *request.prompt_ids)
    )
    found = small.check(engine)
    assert [cause.link for cause in found.causes] == ["prompt tokens"]


def test_a_stale_adapter_is_named(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    """The scorer has the adapter, the engine the weights without it."""
    from peft import LoraConfig, get_peft_model

    plain = tiny_llama(initializer_range=0.5)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(tiny_llama(initializer_range=0.5), config).eval()
    found = range_of(adapted, tiny_tokenizer).check(ReferenceEngine(plain, tiny_tokenizer))
    assert not found.verdict.holds
    assert found.causes[0].link == "weights"
    assert "without its adapter" in found.causes[0].description


def test_weights_before_an_update_are_named(small: Range) -> None:
    """The engine was to sample at θ + η·v, and still does at θ."""
    shifted = {name: p + 0.2 * p.std() * p.sign() for name, p in small.model.named_parameters()}
    found = small.check(ReferenceEngine(small.model, small.tokenizer), override=shifted)
    assert not found.verdict.holds
    assert found.causes[0].link == "weights"
    assert "not the override" in found.causes[0].description


@pytest.mark.slow
@pytest.mark.parametrize(
    ("off_by", "words"),
    [
        (lambda num_rows: 0.01 * (num_rows > 1), "depend on the batch"),
        (lambda num_rows: 0.01, "other logits than the scorer's"),
    ],
    ids=["padding", "kernel"],
)
def test_log_q_of_other_logits_are_told_apart_by_sampling_alone(
    small: Range, off_by: Callable[[int], float], words: str
) -> None:
    """Right tokens, and log q that are wrong in a batch, or everywhere."""
    engine = ReferenceEngine(
        small.model,
        small.tokenizer,
        reports=lambda logits, policy: log_q(logits, policy) + off_by(len(logits)),
    )
    (cause,) = small.check(engine, num_draws=160).causes
    assert cause.link == "logits"
    assert words in cause.description


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (lambda noise: -float(noise.random()), "differ from one run to the next"),
        (lambda _: -math.inf, "log q of -inf reported"),
    ],
)
def test_reports_that_no_batch_explains(
    small: Range, report: Callable[[np.random.Generator], float], words: str
) -> None:
    noise = np.random.default_rng(0)
    engine = ReferenceEngine(
        small.model,
        small.tokenizer,
        reports=lambda logits, policy: log_q(logits, policy) + report(noise),
    )
    (cause,) = small.check(engine, num_draws=16).causes
    assert words in cause.description


def test_what_cannot_be_checked_is_refused_before_anything_is_sampled(small: Range) -> None:
    class Unasked(ReferenceEngine):
        def generate(self, *_: Any) -> Any:
            raise AssertionError("sampled")

    engine = Unasked(small.model, small.tokenizer)
    with pytest.raises(ConfigError, match="false_alarms"):
        small.check(engine, false_alarms=2)
    with pytest.raises(ConfigError, match="logit_error"):
        small.check(engine, logit_error=-1.0)
    with pytest.raises(ConfigError, match="seed must be an integer"):
        check_engine(
            engine,
            small.scorer,
            small.tokenizer,
            *requests_of(4, 2, 0),
            POLICY,
            STOPPING,
            seed="x",  # type: ignore[arg-type]
        )
    with pytest.raises(SequenceError, match="0 requests"):
        small.check(engine, num_draws=0)
    requests, owners = requests_of(4, 2, 0)
    for wrong, numbers, words in (
        (requests, owners[:3], "4 requests and 3 numbers"),
        ([requests[0]] * 4, owners, "index of its own"),
    ):
        with pytest.raises(SequenceError, match=words):
            check_engine(engine, small.scorer, small.tokenizer, wrong, numbers, POLICY, STOPPING)
