"""JSON that any reader takes: numbers that JSON has no form for are spelt out as strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any) -> str:
    """Strict JSON, indented, with a newline at its end; unknown objects as their ``str``."""
    return json.dumps(_strict(value), indent=2, allow_nan=False) + "\n"


def dumps_line(value: Any) -> str:
    """The same on one line."""
    return json.dumps(_strict(value), allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):  # an enumeration's member as well
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
