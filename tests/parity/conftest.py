"""Fixtures of the checks of whole engines."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.parity_range import Range, small_range
from seqproc.engines import HFEngine


@pytest.fixture
def small(tiny_tokenizer: Any) -> Range:
    return small_range(tokenizer=tiny_tokenizer)


@pytest.fixture
def engine(small: Range) -> HFEngine:
    return HFEngine(small.model, small.tokenizer, batch_size=7)
