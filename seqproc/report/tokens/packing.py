"""Blocks of data in a page: a header of JSON and arrays of numbers, gzipped, in base64.

Numbers are shown with six significant digits. So they are rounded to six, as Python writes them,
and float32 holds them: every decimal of six digits survives it. Knows nothing of runs.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PREFIX = "seqproc-tokens-"  # of the elements' ids
_KINDS = {"f4": "<f4", "f8": "<f8", "u4": "<u4"}
_LEAST, _MOST = 1.2e-38, 3.4e38  # magnitudes that a normal float32 has


def block(name: str, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """An element that holds data. Whatever they are, they cannot end it: base64 has no ``<``.

    The content is four bytes with the length of the header, the header, and the arrays one behind
    the other; all are little-endian.

    Args:
        name: what the page's script asks for.
        header: JSON-ready, without the key ``arrays``, which is added.
        arrays: of float32, float64 or uint32.
    """
    kinds = {key: _kind(array) for key, array in arrays.items()}
    listed = [{"name": k, "kind": kinds[k], "count": len(array)} for k, array in arrays.items()]
    # Escaped to ASCII, so that half of a surrogate pair has a form as well.
    head = json.dumps({**header, "arrays": listed}, allow_nan=False).encode("ascii")
    body = b"".join(array.astype(_KINDS[kinds[key]]).tobytes() for key, array in arrays.items())
    packed = gzip.compress(struct.pack("<I", len(head)) + head + body, mtime=0)
    text = base64.b64encode(packed).decode("ascii")
    return f'<script type="application/octet-stream" id="{_PREFIX}{name}">{text}</script>\n'


def as_shown(values: Floats) -> npt.NDArray[np.float32 | np.float64]:
    """Numbers rounded to six significant digits, as float32; float64 beyond its magnitudes."""
    rounded = six_digits(values)
    size = np.abs(rounded[np.isfinite(rounded) & (rounded != 0)])
    fits = size.size == 0 or (size.min() >= _LEAST and size.max() <= _MOST)
    return rounded.astype(np.float32) if fits else rounded


def six_digits(values: Floats) -> Floats:
    """Numbers rounded to six significant decimal digits, as ``f"{value:.6g}"`` rounds them.

    Infinities, NaN and zeros stay as they are.
    """
    rounded = np.array(values, dtype=np.float64)
    places = np.flatnonzero(np.isfinite(rounded) & (rounded != 0))
    numbers = rounded[places]
    ordinary = (np.abs(numbers) > 1e-30) & (np.abs(numbers) < 1e30)
    power = 10.0 ** (5 - np.floor(np.log10(np.abs(np.where(ordinary, numbers, 1.0)))))
    scaled = np.where(ordinary, numbers, 1.0) * power
    rounded[places] = np.rint(scaled) / power
    # The products above are off in their sixteenth digit: what lies near a tie is left to Python.
    near_tie = np.abs(scaled - np.floor(scaled) - 0.5) < 1e-6
    for n in np.flatnonzero(near_tie | ~ordinary):
        rounded[places[n]] = float(f"{numbers[n]:.5e}")
    return rounded


def _kind(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype.kind}{array.dtype.itemsize}"
