"""The tests' small model, reference sampler and broken engines, for benchmarks."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / part) for part in ("", "parity")]

from gallery import GALLERY, STALE_ADAPTER, Broken, ReferenceEngine, requests_of  # noqa: E402 - needs the path
from tiny import byte_tokenizer, random_model  # noqa: E402

__all__ = [
    "GALLERY",
    "STALE_ADAPTER",
    "Broken",
    "ReferenceEngine",
    "byte_tokenizer",
    "random_model",
    "requests_of",
]
