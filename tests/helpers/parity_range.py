"""A model, its scorer and requests, for checks of whole engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helpers.gallery import requests_of
from helpers.tiny import byte_tokenizer, random_model
from seqproc.engines import Engine, StoppingRule
from seqproc.parity import Check, check_engine
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer

STOPPING = StoppingRule(max_new_tokens=40, eos_token_ids=(0,), stop=("q", "x"))
POLICY = SamplingPolicy(temperature=0.7, top_p=0.9)
PER_PROMPT = 8


@dataclass(frozen=True, kw_only=True)
class Range:
    """A model and everything that a check needs beside an engine."""

    model: Any
    tokenizer: Any
    scorer: TeacherForcingScorer

    def check(
        self,
        engine: Engine,
        num_draws: int = 320,
        policy: SamplingPolicy = POLICY,
        seed: int = 0,
        **options: Any,
    ) -> Check:
        """Check an engine on draws of this range."""
        requests, owners = requests_of(num_draws, PER_PROMPT, seed)
        return check_engine(
            engine, self.scorer, self.tokenizer, requests, owners, policy, STOPPING, **options
        )


def range_of(model: Any, tokenizer: Any) -> Range:
    return Range(
        model=model,
        tokenizer=tokenizer,
        scorer=TeacherForcingScorer(model, STOPPING.eos_token_ids),
    )


def small_range(seed: int = 0, tokenizer: Any = None, **changes: Any) -> Range:
    """A random Llama whose logits spread by about 2.5, so that temperatures matter.

    ``changes`` are of fields of its configuration.
    """
    from transformers import LlamaConfig

    tokenizer = tokenizer or byte_tokenizer()
    fields = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.5,
    }
    return range_of(random_model(LlamaConfig, tokenizer, seed, fields | changes), tokenizer)
