"""Reading files of one JSON object a line, with errors that name the file and the line.

Knows nothing of what the objects mean.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqproc.errors import DatasetError


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based line number, object) for every line of a UTF-8 file that is not blank.

    Raises:
        DatasetError: the file cannot be read, or a line is not a JSON object.
    """
    if path.is_char_device():  # one line without end, such as /dev/zero
        raise DatasetError(f"cannot read {path}: it is a device, not a file")
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parse_line(line, f"{path}, line {number}")
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{where}: not UTF-8 ({error.reason}). Save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{where}: not valid JSON ({error}). Each line holds one whole JSON object"
        ) from error
    if not isinstance(row, dict):
        raise DatasetError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row
