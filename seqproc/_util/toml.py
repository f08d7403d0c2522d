"""TOML files: read so that an error can say where, and written.

Knows nothing of what is in them.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from seqproc.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TomlFile:
    """A file that was read."""

    path: Path
    text: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and parse a file.

        Raises:
            ConfigError: it cannot be read, is not UTF-8, or is not TOML.
        """
        try:
            text = path.read_text(encoding="utf-8")
            return cls(path=path, text=text, values=tomllib.loads(text))
        except OSError as error:
            raise ConfigError(
                f"cannot read the configuration file {path}: {error.strerror}"
            ) from error
        except RecursionError as error:
            raise ConfigError(f"{path} is nested too deep to be a configuration file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path} is not UTF-8, as TOML is: byte {error.start} is "
                f"{error.object[error.start]:#04x}; save the file as UTF-8"
            ) from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        except ValueError as error:  # a path with a zero byte in it
            raise ConfigError(
                f"cannot read the configuration file {str(path)!r}: {error}"
            ) from error

    def where(self, *keys: str) -> str:
        """The file and the line on which a key, or a table, begins."""
        line = self._line(keys)
        return f"{self.path}, line {line}" if line else str(self.path)

    def _line(self, keys: Sequence[str]) -> int | None:
        """The line after the longest beginning of the file that is TOML and lacks the key."""
        lines = self.text.splitlines(keepends=True)
        without = 0
        for end in range(1, len(lines) + 1):
            try:
                values = tomllib.loads("".join(lines[:end]))
            except tomllib.TOMLDecodeError:  # within a value of several lines
                continue
            if _holds(values, keys):
                return without + 1
            without = end
        return None


def _holds(values: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def dumps(values: Mapping[str, Any]) -> str:
    """A mapping as TOML: strings, numbers, flags, lists of them, and tables of all these.

    What is None is left out.

    Raises:
        ConfigError: a string that is not Unicode, such as the name of a file in no encoding.
    """
    return "\n".join(_lines(values, ())) + "\n"


def _lines(values: Mapping[str, Any], table: tuple[str, ...]) -> Iterator[str]:
    """The lines of a table: its own values, then the tables in it."""
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    for name, value in values.items():
        if name not in tables and value is not None:
            yield f"{_key(name)} = {_value(value)}"
    for name, value in tables.items():
        path = (*table, name)
        yield ""
        yield f"[{'.'.join(map(_key, path))}]"
        yield from _lines(value, path)


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if is_bare else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, (int, float)):
        return repr(value)
    return _string(str(value))


def _string(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"{text!r} is not Unicode, which a TOML file is made of")
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in quoted)
