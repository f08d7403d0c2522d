"""TOML that is written is read as it was by Python's own reader; a key's line is found."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqproc._util.toml import TomlFile, dumps
from seqproc.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.one_of(TEXT, st.booleans(), st.integers(), st.floats(allow_nan=False))
VALUES = st.recursive(
    st.one_of(SCALARS, st.lists(SCALARS, max_size=3)),
    lambda inner: st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_is_read_again(values: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(values)) == values


def test_what_has_no_form_is_left_out_or_refused() -> None:
    assert tomllib.loads(dumps({"a": None, "b": (1, 2), "t": {"c": None}})) == {
        "b": [1, 2],
        "t": {},
    }
    assert math.isnan(tomllib.loads(dumps({"a": float("nan")}))["a"])
    with pytest.raises(ConfigError, match="not Unicode"):
        dumps({"a": "\udcff"})


def test_text_is_shown_without_doing_anything() -> None:
    assert dumps({"a": "\x1b[2J\u202e\x7f"}).isprintable() is False  # its line end
    assert dumps({"a": "\x1b[2J\u202e\x7f"}).strip().isprintable()


FILE = """\
# b = 0
a = [
  1,  # c = 2
]

b = '''
c = 3'''
[t]
"c" = 4

[t.u]
d.e = 5
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["a"], 2),
        (["b"], 6),
        (["t"], 8),
        (["t", "c"], 9),
        (["t", "u"], 11),
        (["t", "u", "d", "e"], 12),
        (["c"], None),
        (["a", "b"], None),
    ],
)
def test_a_key_is_found_on_its_line(tmp_path: Path, keys: list[str], line: int | None) -> None:
    path = tmp_path / "file.toml"
    path.write_text(FILE)
    expected = str(path) if line is None else f"{path}, line {line}"
    assert TomlFile.read(path).where(*keys) == expected


def test_a_file_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text("a = " + "[" * 3000)
    with pytest.raises(ConfigError, match="nested too deep"):
        TomlFile.read(path)
