"""A LoRA adapter on either model runner, coupled and native."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.runner_helpers import FULL, NUCLEUS, Model, Recorded, require_replayed, run, tokens
from seqproc.engines import HFEngine, ModelSource


@pytest.fixture(scope="module")
def adapted(model: Model) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_config(model.live.config, dtype=torch.float32).eval()
    base.load_state_dict(model.live.state_dict())
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(base, lora).eval()


def test_coupled(start: Any, model: Model, adapted: Any) -> None:
    requests, rule, hf = model.requests(1), model.rule(8), HFEngine(adapted, model.tokenizer)
    with (
        ModelSource.from_model(adapted, model.tokenizer) as source,
        start(source, sampler="coupled") as engine,
    ):
        for policy in (FULL, NUCLEUS):
            found = tokens(run(engine, requests, policy, rule))
            assert found == tokens(run(hf, requests, policy, rule))
            assert found != tokens(run(model.hugging_face(), requests, policy, rule))


def test_native(start: Any, model: Model, adapted: Any, runner: str) -> None:
    """By replay on V2; on V1, whose noise cannot be computed again, by the reported log q."""
    requests = model.requests(1)
    with (
        ModelSource.from_model(adapted, model.tokenizer) as source,
        start(source, sampler="native") as engine,
    ):
        for policy in (FULL, NUCLEUS):
            recorded = Recorded(engine, run(engine, requests, policy, model.rule(4)))
            check = model.check(recorded, policy, requests, live=adapted, limit=4)
            if runner == "V2":
                require_replayed(check)
            else:
                assert check.replay is None
                assert check.verdict.holds, check.findings
            plain = model.check(recorded, policy, requests, limit=4)
            assert not plain.verdict.holds
