"""Tests of both of vLLM's model runners on a tiny model, each in a process of its own.

vLLM reads when it is imported what it runs on, so the runner is chosen before:
`tests/engines/test_vllm_runners.py` starts a process per runner, with its name in
SEQPROC_TEST_RUNNER. V2, the runner of GPUs, works there in Triton's interpreter. Where there is a
GPU, these tests are collected like any other and run on it, on V2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.runner_helpers import Model, make_model

RUNNER = os.environ.get("SEQPROC_TEST_RUNNER")
HAS_GPU = torch.cuda.is_available()

if RUNNER == "V2" and not HAS_GPU:
    from helpers.interpreter import install

    install()

if RUNNER == "V1":
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    collect_ignore_glob = ["test_*_v2.py"]
elif RUNNER is None and not HAS_GPU:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here starts vLLM or its parts, and some need a GPU's."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if RUNNER is None:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def runner() -> str:
    """The name of the runner that works in this process."""
    return RUNNER or "V2"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def start(model: Model) -> Callable[..., AbstractContextManager[Any]]:
    """`with start(sampler=…) as engine`: one vLLM at a time."""
    from seqproc.engines import create_engine

    @contextmanager
    def started(source: Any = None, **options: Any) -> Iterator[Any]:
        small = {"max_model_len": 128, "max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 26}
        with create_engine("vllm", source or model.source, **{**small, **options}) as engine:
            yield engine

    return started
