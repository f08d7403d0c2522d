"""Bets on suspects: their ratios are right, a right engine does not win them, and they certify."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch

from helpers.broken import WHOLE
from helpers.faults import FaultyEngine
from helpers.gallery import requests_of
from helpers.parity_range import PER_PROMPT, STOPPING, Range
from seqproc.errors import ConfigError, OverrideError, SequenceError
from seqproc.parity import Suspect, check_engine, sample, score_nominal, without_adapter
from seqproc.parity.betting.suspected import log_ratios_of
from seqproc.parity.logit_error import LogitError
from seqproc.parity.sequential import Until
from seqproc.parity.suspected import with_bets
from seqproc.parity.suspects import Case, _common, all_suspects, other_prompts, other_weights


def shifted(model: Any, step: float) -> dict[str, Any]:
    return {
        name: p + step * p.std().nan_to_num() * p.sign() for name, p in model.named_parameters()
    }


def case_of(small: Range, suspects: Any, num_draws: int = 16) -> Case:
    engine = FaultyEngine(small.model, small.tokenizer)
    requests, owners = requests_of(num_draws, PER_PROMPT, 0)
    answers = sample(engine, requests, owners, WHOLE, STOPPING)
    draws, nominal = score_nominal(answers, small.scorer, WHOLE, 5e-4)
    return Case(
        engine=engine,
        answers=answers,
        scorer=small.scorer,
        policy=WHOLE,
        stopping=STOPPING,
        draws=draws,
        nominal=nominal,
        override=None,
        suspects=all_suspects(suspects),
        error=LogitError(nats=5e-4, told=None),
    )


def test_bets_are_the_likelihood_ratios_of_the_models_own_forward(small: Range) -> None:
    """Oracle: softmax in numpy of the logits that transformers gives, one draw at a time."""
    other = shifted(small.model, 0.1)
    suspects = {
        "weights": lambda: other,
        "prompts": Suspect(prompt=lambda ids: (9, *ids)),
        "both": Suspect(parameters=lambda: other, prompt=lambda ids: ids[1:]),
    }
    case = with_bets(case_of(small, suspects))
    gains = case.nominal.gains
    assert gains is not None
    assert [one.family for one in gains.alternatives[-3:]] == ["weights", "prompts", "weights"]
    for k, (parameters, prompt) in enumerate(
        [(other, lambda ids: ids), ({}, lambda ids: (9, *ids)), (other, lambda ids: ids[1:])]
    ):
        for d, answer in enumerate(case.answers):
            of_r = _log_p(small.model, parameters, prompt(answer.request.prompt_ids), answer)
            of_q = _log_p(small.model, {}, answer.request.prompt_ids, answer)
            expected = np.log(1e-4 + (1 - 1e-4) * np.exp(of_r - of_q)).sum()
            assert gains.sums[d, k - 3].sum() == pytest.approx(expected, abs=1e-3)


def _log_p(model: Any, parameters: Any, prompt: Any, answer: Any) -> Any:
    ids = torch.tensor([[*prompt, *answer.completion.token_ids]])
    with torch.no_grad():
        found = torch.func.functional_call(model, dict(parameters), (ids,), strict=False)
    logits = found.logits[0, len(prompt) - 1 : -1].double().numpy()
    log_p = logits - logits.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    return log_p[np.arange(len(log_p)), list(answer.completion.token_ids)]


def test_a_bet_has_mean_1_under_q() -> None:
    rng = np.random.default_rng(0)
    q, r = rng.dirichlet(np.ones(50), 2)
    r[:5] = 0.0
    r /= r.sum()
    with np.errstate(divide="ignore"):
        ratios = log_ratios_of(np.log(r), np.log(q))
    assert (q * np.exp(ratios)).sum() == pytest.approx(1.0, abs=1e-12)


def test_a_token_outside_both_supports_counts_against_the_suspect_alone() -> None:
    outside = np.array([-math.inf, -math.inf])
    ratios = log_ratios_of(np.array([-1.0, -math.inf]), outside)
    assert ratios.tolist() == [0.0, math.log(1e-4)]


def test_a_right_engine_passes_and_suspects_are_ruled_out(small: Range) -> None:
    other = shifted(small.model, 0.1)
    found = small.check(
        FaultyEngine(small.model, small.tokenizer, silent=True),
        num_draws=96,
        policy=WHOLE,
        suspects={"the step before": lambda: other, "the same": dict},
        until=Until(within=5.0, first_look=64),
    )
    assert found.verdict.holds
    assert found.certificate is not None
    assert "the step before" not in {one.name for one in found.certificate.left}
    without = small.check(
        FaultyEngine(small.model, small.tokenizer, silent=True),
        num_draws=96,
        policy=WHOLE,
        until=Until(within=5.0, first_look=64),
    )
    assert without.certificate is not None
    more = found.certificate.num_ruled_out - without.certificate.num_ruled_out
    assert more == 1
    assert found.certificate.num_near - without.certificate.num_near == 1
    assert found.certificate.suspects == {"the step before": "ruled out", "the same": "near"}
    assert without.certificate.suspects == {}


def test_logits_of_a_suspect_that_overflow_are_told_and_bets_go_on(small: Range) -> None:
    """Finite weights with infinite logits: no bet may come to NaN, which would decide nothing."""
    huge = {"lm_head.weight": small.model.lm_head.weight.detach() * 1e38}
    with pytest.raises(ConfigError, match=r"under the suspect 'huge' log p of .* is not a number"):
        with_bets(case_of(small, {"huge": lambda: huge}))
    with pytest.raises(ConfigError, match="under the suspect 'huge'"):
        small.check(FaultyEngine(small.model, small.tokenizer), suspects={"huge": lambda: huge})


def test_a_suspect_of_the_callers_goes_before_a_common_mistake_of_its_name(small: Range) -> None:
    name = "prompts without their first token"
    found = other_prompts(case_of(small, {name: Suspect(prompt=lambda ids: ids[:1])}))
    assert found[name].prompt is not None
    assert found[name].prompt((5, 6, 7)) == (5,)
    rounded = "weights rounded to bfloat16"
    own = Suspect(parameters=dict)
    assert other_weights(case_of(small, {rounded: own}))[rounded] is own


def test_a_model_is_no_function_to_parameters(small: Range) -> None:
    with pytest.raises(ConfigError, match="a LlamaForCausalLM as parameters"):
        small.check(FaultyEngine(small.model, small.tokenizer), suspects={"x": small.model})


@pytest.mark.parametrize("suspect", [3, "x"])
def test_a_suspect_has_to_be_one(small: Range, suspect: Any) -> None:
    with pytest.raises(ConfigError, match="a Suspect needs"):
        small.check(FaultyEngine(small.model, small.tokenizer), suspects={"odd": suspect})
    with pytest.raises(ConfigError, match="a Suspect needs"):
        Suspect()


@pytest.mark.parametrize("ids", [(), (300,), (-1,)])
def test_a_prompt_of_a_suspect_has_to_be_one(small: Range, ids: Any) -> None:
    with pytest.raises(ConfigError, match="must return one or more token ids"):
        with_bets(case_of(small, {"odd": Suspect(prompt=lambda _: ids)}))


@pytest.mark.parametrize(
    ("suspect", "words"),
    [
        (Suspect(prompt=lambda _: None), "token ids.*it made a NoneType"),
        (Suspect(prompt=lambda _: [cast("Any", 1.5)]), "token ids.*'float' object"),
        (Suspect(prompt=lambda ids: ids * 1_000), "tokens, and the model reads"),
        (lambda: None, "returns a mapping.*it returned a NoneType"),
    ],
    ids=["no prompt", "no ids", "too many ids", "no parameters"],
)
def test_what_a_suspect_makes_is_told_when_it_is_none(
    small: Range, suspect: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        with_bets(case_of(small, {"odd": suspect}))


def test_arguments_of_a_check_that_are_none_are_told(small: Range) -> None:
    engine = FaultyEngine(small.model, small.tokenizer)
    with pytest.raises(ConfigError, match="until must be an Until"):
        small.check(engine, until=0.01)
    with pytest.raises(ConfigError, match=r"suspects must be a mapping.*got a list"):
        small.check(engine, suspects=[dict])
    with pytest.raises(ConfigError, match="got a dict as parameters") as told:
        small.check(engine, suspects={"θ": dict(small.model.named_parameters())})
    assert len(str(told.value)) < 200
    requests, owners = requests_of(16, PER_PROMPT, seed=0)
    halves: list[tuple[Any, Any]] = [(requests, iter(owners)), (iter(requests), owners)]
    for some, numbers in halves:
        with pytest.raises(SequenceError, match="must be a list"):
            check_engine(engine, small.scorer, small.tokenizer, some, numbers, WHOLE, STOPPING)


def test_parameters_of_another_model_are_refused(small: Range) -> None:
    with pytest.raises(OverrideError):
        with_bets(case_of(small, {"odd": lambda: {"no.such": torch.zeros(1)}}))


def test_common_mistakes_change_a_prompt(small: Range) -> None:
    case = case_of(small, {}, num_draws=32)
    prompts = {answer.request.prompt_ids for answer in case.answers}
    found = other_prompts(case)
    assert "prompts without their first token" in found
    for one in found.values():
        assert one.prompt is not None
        assert any(tuple(one.prompt(ids)) != ids for ids in prompts)
    assert _common([(1, 2, 3), (1, 2), (1, 2, 9)]) == 2
    assert _common([(1, 2, 3)]) == 0


def test_a_model_without_an_adapter_has_no_other(small: Range) -> None:
    assert without_adapter(small.model) == {}
