"""The tests' small model, reference sampler and broken engines, for benchmarks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.gallery import GALLERY, STALE_ADAPTER, Broken, ReferenceEngine, requests_of
from helpers.tiny import byte_tokenizer, random_model

__all__ = [
    "GALLERY",
    "STALE_ADAPTER",
    "Broken",
    "ReferenceEngine",
    "byte_tokenizer",
    "random_model",
    "requests_of",
]
