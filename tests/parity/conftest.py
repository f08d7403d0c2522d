"""Fixtures of the checks of whole engines."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.parity_range import Range, small_range


@pytest.fixture
def small(tiny_tokenizer: Any) -> Range:
    return small_range(tokenizer=tiny_tokenizer)
