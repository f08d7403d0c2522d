"""Parity of real engines on SmolLM2 in float32: coupled draws, and generation at θ + η·v.

Right engines would fail a check with probability 1e-3; seeds are fixed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.engine_bench import QUESTIONS, VLLMHost, prompt_ids, start_vllm
from seqproc.engines import Engine, HFEngine, ModelSource, Request, StoppingRule
from seqproc.parity import Answer, Check, check_engine, compare, sample
from seqproc.policy import SamplingPolicy
from seqproc.prompts import draw_seed
from seqproc.scorers import TeacherForcingScorer, build_params_override

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.slow]

POLICY = SamplingPolicy(temperature=0.9, top_p=0.95)
NUM_PROMPTS = 16
FLOAT32 = 5e-4  # nats by which a logit may be off

OTHER_PROCESS = """
import json, sys
from helpers.engine_bench import start_vllm
from seqproc.engines import ModelSource, Request, StoppingRule
from seqproc.policy import SamplingPolicy

given = json.loads(sys.stdin.read())
with ModelSource.from_pretrained(given["path"]) as source:
    with start_vllm(source, sampler="coupled", max_num_seqs=64) as engine:
        requests = [Request(index=i, prompt_ids=tuple(p), seed=s) for i, p, s in given["requests"]]
        rule = StoppingRule(max_new_tokens=given["limit"], eos_token_ids=source.eos_token_ids)
        found = engine.generate(requests, SamplingPolicy(**given["policy"]), rule)
        print("FOUND", json.dumps({c.index: c.token_ids for c in found}))
"""


def requests_of(tokenizer: Any, count: int, seed: int = 0) -> list[Request]:
    return [
        Request(
            index=i,
            prompt_ids=tuple(prompt_ids(tokenizer, QUESTIONS[i % NUM_PROMPTS])),
            seed=draw_seed(seed, i),
        )
        for i in range(count)
    ]


@pytest.fixture
def source(smollm2_path: Path, vllm_host: VLLMHost) -> Iterator[ModelSource]:
    vllm_host.stop()  # one vLLM at a time
    with ModelSource.from_pretrained(smollm2_path, device="cpu") as source:
        yield source


def in_parts(
    engine: Engine, requests: list[Request], size: int, rule: StoppingRule
) -> list[Answer]:
    """The requests in calls of so many."""
    parts = [requests[i : i + size] for i in range(0, len(requests), size)]
    return [a for part in parts for a in sample(engine, part, [0] * len(part), POLICY, rule)]


def require_coupled(
    scorer: TeacherForcingScorer, expected: list[Answer], found: list[Answer]
) -> None:
    number = len(found)
    result = compare(("a", "b"), expected[:number], found, scorer, POLICY, FLOAT32)
    assert result.holds, result.divergences
    assert result.num_identical >= 0.95 * number


def test_a_coupled_draw_is_the_same_in_any_engine_batch_order_and_process(
    source: ModelSource, smollm2_path: Path
) -> None:
    requests = requests_of(source.tokenizer, 32)
    rule = StoppingRule(max_new_tokens=12, eos_token_ids=source.eos_token_ids)
    scorer = TeacherForcingScorer(source.live_model(), source.eos_token_ids)
    hf = HFEngine(source.live_model(), source.tokenizer, batch_size=64)
    with start_vllm(source, sampler="coupled", max_num_seqs=64) as vllm:
        expected = in_parts(vllm, requests, 64, rule)
        require_coupled(scorer, expected, in_parts(hf, requests, 64, rule))
        for engine in (vllm, hf):
            require_coupled(scorer, expected, in_parts(engine, requests[:4], 1, rule))
            require_coupled(scorer, expected, in_parts(engine, requests[:14], 7, rule))
            backwards = in_parts(engine, requests[::-1], 64, rule)
            require_coupled(scorer, expected, backwards[::-1])
    elsewhere = tokens_of_another_process(smollm2_path, requests, rule)
    assert elsewhere == [answer.completion.token_ids for answer in expected]


def tokens_of_another_process(
    path: Path, requests: list[Request], rule: StoppingRule
) -> list[tuple[int, ...]]:
    given = {
        "path": str(path),
        "requests": [(r.index, r.prompt_ids, r.seed) for r in requests],
        "limit": rule.max_new_tokens,
        "policy": {"temperature": POLICY.temperature, "top_p": POLICY.top_p},
    }
    result = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    line = next(x for x in result.stdout.splitlines() if x.startswith("FOUND "))
    found = {int(i): tuple(ids) for i, ids in json.loads(line.removeprefix("FOUND ")).items()}
    return [found[request.index] for request in requests]


def adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, config).eval()


def test_generation_at_shifted_parameters_is_that_of_the_scorer(
    smollm2_path: Path, vllm_host: VLLMHost
) -> None:
    """Full weights and LoRA: parity against the override, and none against θ."""
    from seqproc import load_model

    vllm_host.stop()
    model, tokenizer = load_model(str(smollm2_path), device="cpu")
    model = adapted(model)
    for name, p in model.named_parameters():
        p.requires_grad_(True)
        if ".lora_" in name:
            p.data.mul_(0.05)
    generator = torch.Generator().manual_seed(1)
    full = {
        name: p.detach().std() * torch.randn(p.shape, generator=generator)
        for name, p in model.named_parameters()
        if ".lora_" not in name and p.dim() == 2
    }
    lora = {
        name: torch.randn(p.shape, generator=generator)
        for name, p in model.named_parameters()
        if ".lora_" in name
    }
    with ModelSource.from_model(model, tokenizer) as source:
        scorer = TeacherForcingScorer(model, source.eos_token_ids)
        with start_vllm(source) as engine:
            for direction, eta in ((full, 0.02), (lora, 0.01)):
                override = build_params_override(model, direction, eta)
                engine.load_weights(override)
                found = checked(engine, scorer, source, override)
                assert found.verdict.holds, (found.findings, found.causes)
                wrong = checked(engine, scorer, source, None, override)
                assert not wrong.verdict.holds
                assert wrong.causes[0].link == "weights"
                assert wrong.causes[0].description == "the weights of the last update"


def checked(
    engine: Engine,
    scorer: TeacherForcingScorer,
    source: ModelSource,
    override: Any,
    suspected: Any = None,
) -> Check:
    requests = requests_of(source.tokenizer, 32)
    rule = StoppingRule(max_new_tokens=12, eos_token_ids=source.eos_token_ids)
    suspects = {"the weights of the last update": lambda: suspected} if suspected else None
    return check_engine(
        engine,
        scorer,
        source.tokenizer,
        requests,
        [i % NUM_PROMPTS for i in range(32)],
        POLICY,
        rule,
        override=override,
        suspects=suspects,
    )
