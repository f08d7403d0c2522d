"""The error that an engine's logits are allowed, against plain forwards in its dtype."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from helpers.gallery import ReferenceEngine
from helpers.parity_range import Range
from seqproc.engines import HFEngine
from seqproc.errors import ConfigError
from seqproc.parity import Check
from seqproc.parity.logit_error import (
    LOGIT_ERRORS,
    LogitError,
    known_dtype,
    logit_error_of,
    require_logit_error,
    rounding_gaps,
)
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TokenSequence, build_params_override

SEQUENCES = [
    TokenSequence(prompt_ids=torch.tensor(prompt), response_ids=torch.arange(40, 40 + length))
    for prompt, length in (((40, 41, 42, 43), 8), ((50,), 3), ((60, 61, 62), 12))
]


def rounded_model(model: Any, dtype: torch.dtype) -> Any:
    """A copy with parameters in the dtype; buffers stay, as where a checkpoint is loaded in it."""
    rounded = copy.deepcopy(model)
    for p in rounded.parameters():
        p.data = p.data.to(dtype)
    return rounded


def test_wider_dtypes_are_allowed_less() -> None:
    assert LOGIT_ERRORS["float64"] < LOGIT_ERRORS["float32"] < LOGIT_ERRORS["bfloat16"]


@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ("float32", "float32"),
        ("torch.float16", "float16"),
        ("BF16", "bfloat16"),
        ("half", "float16"),
        ("fp64", "float64"),
    ],
)
def test_a_dtype_has_several_names(told: str, dtype: str) -> None:
    assert known_dtype(told) == (dtype, None)


@pytest.mark.parametrize("told", [None, "auto", "fp8", "", 3, ["float32"], {}])
def test_an_unknown_dtype_gets_the_allowance_of_float32_and_says_so(told: object) -> None:
    dtype, assumed = known_dtype(told)
    assert dtype == "float32"
    assert assumed is not None
    assert repr(told) in assumed or told is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gaps_are_those_of_a_model_in_that_dtype(small: Range, dtype: torch.dtype) -> None:
    rounded, gaps = rounded_model(small.model, dtype), []
    with torch.no_grad():
        for one in SEQUENCES:
            ids = torch.cat([one.prompt_ids, one.response_ids])[None]
            log_ps = [
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
                .logits[0, len(one.prompt_ids) - 1 : -1]
                .double()
                .log_softmax(-1)
                .gather(-1, one.response_ids[:, None])[:, 0]
                for model in (small.model, rounded)
            ]
            gaps.append((log_ps[0] - log_ps[1]).abs())
    found = rounding_gaps(small.scorer, SEQUENCES, dtype)
    assert found.max() > 1e-3
    # Padding and kernels of attention round in their own ways.
    torch.testing.assert_close(found.mean(), torch.cat(gaps).mean(), rtol=0.3, atol=0)
    assert found.shape == torch.cat(gaps).shape


def test_they_are_those_of_an_override_where_one_is_sampled_with(small: Range) -> None:
    direction = {name: torch.randn_like(p) for name, p in small.model.named_parameters()}
    override = build_params_override(small.model, direction, 0.1)
    gaps = rounding_gaps(small.scorer, SEQUENCES, torch.bfloat16, override)
    assert not torch.equal(gaps, rounding_gaps(small.scorer, SEQUENCES, torch.bfloat16))
    small.model.load_state_dict(dict(override), strict=False)
    torch.testing.assert_close(gaps, rounding_gaps(small.scorer, SEQUENCES, torch.bfloat16))


def test_the_dtype_that_the_engine_tells_decides(small: Range) -> None:
    def allowed(dtype: str | None, given: float | None = None) -> LogitError:
        return logit_error_of({"dtype": dtype}, given, small.scorer, SEQUENCES * 8)

    assert allowed("float32") == LogitError(nats=LOGIT_ERRORS["float32"])
    assert allowed("bfloat16", 0.125) == LogitError(nats=0.125)
    gaps = rounding_gaps(small.scorer, SEQUENCES * 8, torch.bfloat16)
    found = allowed("bfloat16")
    assert found.nats == max(LOGIT_ERRORS["bfloat16"], float(gaps.max()))
    assert found.mean == 3 * float(gaps.mean())
    assert found.told is not None
    assert f"{gaps.max():.2g}" in found.told


@pytest.mark.parametrize("error", [-1.0, math.nan, math.inf, True, "0.1"])
def test_an_error_that_is_none_is_refused(error: Any) -> None:
    with pytest.raises(ConfigError, match="logit_error"):
        require_logit_error(error)


def test_the_log_q_of_a_right_bfloat16_engine_are_right(small: Range) -> None:
    """Under weights so large that bfloat16 moves log p by more than the table has."""
    for p in small.model.parameters():
        p.data.mul_(2.0 if p.ndim > 1 else 1.0)
    engine = HFEngine(rounded_model(small.model, torch.bfloat16), small.tokenizer)
    found = small.check(engine, num_draws=64)
    assert engine.describe()["dtype"] == "bfloat16"
    assert found.logit_error > 2 * LOGIT_ERRORS["bfloat16"]
    assert not {"reported log q", "support", "replay"} & set(found.verdict.failed)


def test_bfloat16_does_not_excuse_the_log_q_of_another_temperature(small: Range) -> None:
    """The tokens are right: only what is reported is off, by less than bfloat16 may be at worst."""
    policy = SamplingPolicy(temperature=0.7)

    def reports(logits: torch.Tensor, _: SamplingPolicy) -> torch.Tensor:
        return log_q(logits, SamplingPolicy(temperature=1.0))

    def check(**options: Any) -> Check:
        engine = ReferenceEngine(small.model, small.tokenizer, dtype="bfloat16", **options)
        return small.check(engine, policy=policy, num_draws=64)

    assert check().verdict.holds
    wrong = check(reports=reports)
    assert wrong.verdict.failed == ("reported log q",)
    found = next(one for one in wrong.findings if one.name == "reported log q")
    assert "on average" in found.detail
