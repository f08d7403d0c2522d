"""Engines under test, each with what its tests need to know: built once, vLLM above all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.engine_bench import Bench, VLLMHost
from seqproc.engines import Request


@pytest.fixture(scope="session")
def vllm_host(smollm2_path: Path) -> Iterator[VLLMHost]:
    pytest.importorskip("vllm", exc_type=ImportError)
    host = VLLMHost(smollm2_path)
    yield host
    host.stop()


@pytest.fixture
def hf_bench(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> Bench:
    """A tiny random Llama behind the Hugging Face engine."""
    from seqproc.engines import HFEngine

    engine = HFEngine(tiny_llama(), tiny_tokenizer, max_context=512, batch_size=5)
    return Bench(
        engine=engine, tokenizer=tiny_tokenizer, eos_token_ids=(tiny_tokenizer.eos_token_id,)
    )


@pytest.fixture
def scripted_bench(tiny_tokenizer: Any) -> Bench:
    """Pseudo-random tokens from each request's seed, completed backwards."""
    from seqproc.engines import ScriptedEngine

    def script(request: Request) -> list[int]:
        return [(request.seed * 7919 + step * 104729) % 300 for step in range(64)]

    engine = ScriptedEngine(
        script,
        tiny_tokenizer,
        in_flight=5,
        order=lambda window: reversed(window),
        logqs=lambda _, ids: [-1.0] * len(ids),
        max_context=512,
    )
    return Bench(
        engine=engine, tokenizer=tiny_tokenizer, eos_token_ids=(tiny_tokenizer.eos_token_id,)
    )
