"""The canary passes right engines and catches stale weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from helpers.gallery import ReferenceEngine
from helpers.parity_range import Range
from seqproc.engines import HFEngine
from seqproc.errors import EngineError
from seqproc.parity.freshness import canary, require_weights
from seqproc.scorers import build_params_override

PROMPTS = [(40, 41), (50,), (60, 61, 62)]


def test_the_same_weights_pass(small: Range) -> None:
    engine = HFEngine(small.model, small.tokenizer)
    found = canary(engine, small.scorer, PROMPTS)
    assert (found.p_value, found.statistic) == (1.0, 0.0)
    require_weights(engine, small.scorer, PROMPTS)


def test_stale_weights_are_caught_and_fresh_ones_pass(small: Range) -> None:
    """θ + η·v with an η that moves log q by a few hundredths."""
    direction = {name: p.detach().sign() for name, p in small.model.named_parameters()}
    override = build_params_override(small.model, direction, 1e-3)
    engine = HFEngine(small.model, small.tokenizer)
    with pytest.raises(EngineError, match="does not sample with the scorer's weights"):
        require_weights(engine, small.scorer, PROMPTS, override=override)
    engine.load_weights(override)
    require_weights(engine, small.scorer, PROMPTS, override=override)
    with pytest.raises(EngineError, match="load_weights"):
        require_weights(engine, small.scorer, PROMPTS)


def test_without_log_q_the_greedy_tokens_tell(small: Range) -> None:
    """An engine that reports no log q, with other weights altogether."""
    other = copy.deepcopy(small.model)
    for p in other.parameters():
        p.data.mul_(-1)

    class Silent(ReferenceEngine):
        def _completion(self, draw, stopping):
            return replace(super()._completion(draw, stopping), logqs=None)

    assert canary(Silent(small.model, small.tokenizer), small.scorer, PROMPTS).p_value == 1.0
    assert canary(Silent(other, small.tokenizer), small.scorer, PROMPTS).p_value == 0.0
