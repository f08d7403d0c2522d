"""Fixtures of the checks of whole engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from helpers.parity_range import Range, range_of


@pytest.fixture
def small(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> Range:
    """A Llama whose logits spread by about 2.5, so that temperatures matter."""
    return range_of(tiny_llama(initializer_range=0.5), tiny_tokenizer)
