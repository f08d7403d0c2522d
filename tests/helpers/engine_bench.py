"""Helpers of the engine tests: an engine with something to ask it, and the one shared vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqproc.engines import Completion, Engine, ModelSource, Request, StoppingRule
from seqproc.policy import SamplingPolicy

NEAR_TIE = 1e-3  # nats between two logits, above which rounding cannot swap them
QUESTIONS = [f"What is {i} + {i + 3}? Explain" + " step by step" * (i % 3) for i in range(32)]


@dataclass(kw_only=True)
class Bench:
    """An engine, and what it takes to ask it something."""

    engine: Any  # an `Engine`, whose insides tests look into
    tokenizer: Any
    eos_token_ids: tuple[int, ...]

    def requests(self, count: int, *, first_seed: int = 1000) -> list[Request]:
        """Requests with prompts of several lengths."""
        return [
            Request(
                index=i, prompt_ids=tuple(prompt_ids(self.tokenizer, text)), seed=first_seed + i
            )
            for i, text in zip(range(count), QUESTIONS, strict=False)
        ]

    def rule(self, limit: int = 8, *stop: str) -> StoppingRule:
        """The engine's EOS ids, a limit and stop strings."""
        return StoppingRule(max_new_tokens=limit, eos_token_ids=self.eos_token_ids, stop=stop)


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a prompt: a chat turn where the tokenizer has a template."""
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(text))
    turn = [{"role": "user", "content": text}]
    return list(
        tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


class VLLMHost:
    """Starts the one vLLM engine that tests share; can stop it to make room for another."""

    def __init__(self, path: Path) -> None:
        self._source = ModelSource.from_pretrained(path)
        self._engine: Engine | None = None

    def bench(self) -> Bench:
        if self._engine is None:
            self._engine = start_vllm(self._source)
        return Bench(
            engine=self._engine,
            tokenizer=self._source.tokenizer,
            eos_token_ids=self._source.eos_token_ids,
        )

    def stop(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def start_vllm(source: ModelSource, **options: Any) -> Engine:
    """A small vLLM: enough for 32 short sequences."""
    from seqproc.engines import create_engine

    small = {"max_model_len": 512, "max_num_seqs": 32, "kv_cache_memory_bytes": 1 << 30}
    return create_engine("vllm", source, **{**small, **options})


def run(
    engine: Any, requests: list[Request], policy: SamplingPolicy, rule: StoppingRule
) -> dict[int, Completion]:
    return {c.index: c for c in engine.generate(requests, policy, rule)}


def forward(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    """Logits ``[T, V]`` of the response's tokens, teacher-forced."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    return logits[len(prompt) - 1 : -1]


def require_same_but_for_near_ties(
    model: Any, requests: list[Request], ours: dict[int, Completion], other: dict[int, Completion]
) -> None:
    """Greedy tokens equal; where they part, the two candidates' logits must be nearly equal."""
    for request in requests:
        a, b = ours[request.index].token_ids, other[request.index].token_ids
        parts = next(
            (t for t, pair in enumerate(zip(a, b, strict=False)) if len(set(pair)) > 1), None
        )
        if parts is None:
            assert a == b
            continue
        logits = forward(model, request.prompt_ids, a[: parts + 1])[-1]
        gap = abs(float(logits[a[parts]] - logits[b[parts]]))
        print(f"request {request.index}, token {parts}: {a[parts]} or {b[parts]}, gap {gap:.2e}")
        assert gap <= NEAR_TIE
