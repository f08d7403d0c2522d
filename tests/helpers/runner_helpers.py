"""A tiny model that vLLM can run, and what tests ask engines of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.tiny import byte_tokenizer, random_model
from seqproc.engines import Completion, Engine, HFEngine, ModelSource, Request, StoppingRule
from seqproc.parity import Check, check_engine
from seqproc.policy import SamplingPolicy
from seqproc.prompts import draw_seed
from seqproc.scorers import TeacherForcingScorer

FULL = SamplingPolicy()
NUCLEUS = SamplingPolicy(temperature=0.9, top_p=0.9)
PROMPTS = ("What is 2 + 3?", "The answer is", "a", "How many clips did she sell altogether? Say")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model on disk and in memory, and its tokenizer."""

    source: ModelSource
    live: Any
    tokenizer: Any

    def requests(self, per_prompt: int = 2, seeds: Sequence[int] = ()) -> list[Request]:
        """Requests of prompts of several lengths, those of a prompt next to each other."""
        number = len(PROMPTS) * per_prompt
        return [
            Request(
                index=i,
                prompt_ids=tuple(self.tokenizer.encode(PROMPTS[i // per_prompt])),
                seed=seeds[i] if i < len(seeds) else draw_seed(0, i),
            )
            for i in range(number)
        ]

    def rule(self, limit: int = 12, **options: Any) -> StoppingRule:
        """EOS alone ends a response, or what ``options`` say."""
        return StoppingRule(**{"max_new_tokens": limit, "eos_token_ids": (0,), **options})

    def hugging_face(self) -> HFEngine:
        """The reference engine."""
        return HFEngine(self.live, self.tokenizer, batch_size=16)

    def check(
        self,
        engine: Any,
        policy: SamplingPolicy,
        requests: list[Request],
        *,
        live: Any = None,
        limit: int = 12,
        **options: Any,
    ) -> Check:
        """`check_engine` in the truth of this model, or of ``live``.

        The engine samples once: what a failure's causes would sample again is answered from that.
        """
        scorer, rule = TeacherForcingScorer(live or self.live, (0,)), self.rule(limit)
        per_prompt = len(requests) // len(PROMPTS)
        owners = [i // per_prompt for i in range(len(requests))]
        recorded: Any = Recorded(engine, run(engine, requests, policy, rule))
        return check_engine(
            recorded, scorer, self.tokenizer, requests, owners, policy, rule, **options
        )


class Recorded:
    """An engine that answers what was recorded of another."""

    def __init__(self, engine: Any, answers: dict[int, Completion]) -> None:
        self._engine, self._answers = engine, answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        del policy, stopping
        yield from (self._answers[request.index] for request in requests)


def make_model(folder: Path) -> Model:
    """Heads of 32 dimensions: vLLM's attention on a CPU knows no smaller ones."""
    from transformers import LlamaConfig

    tokenizer = byte_tokenizer()
    fields = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    }
    live = random_model(LlamaConfig, tokenizer, 0, fields)
    live.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Model(source=ModelSource.from_pretrained(folder), live=live, tokenizer=tokenizer)


def run(
    engine: Engine, requests: list[Request], policy: SamplingPolicy, rule: StoppingRule
) -> dict[int, Completion]:
    """Completions by request."""
    return {c.index: c for c in engine.generate(requests, policy, rule)}


def tokens(completions: dict[int, Completion]) -> dict[int, tuple[int, ...]]:
    """Token ids alone."""
    return {index: one.token_ids for index, one in completions.items()}


def require_replayed(check: Check) -> None:
    """Every token is the one that is due, or nearly tied with it; few tie."""
    assert check.replay is not None
    assert check.replay.num_wrong == 0, check.replay.wrong
    assert check.replay.num_near_ties <= 0.05 * check.replay.num_tokens
    assert check.replay.num_equal + check.replay.num_near_ties == check.num_tokens


def moved_weights(model: Any) -> dict[str, Tensor]:
    """θ + δ of every matrix."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator)
        for name, p in model.named_parameters()
        if p.dim() == 2
    }
