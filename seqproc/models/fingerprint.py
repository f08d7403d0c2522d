"""Fingerprints of weights: a short digest that changes with any bit of any tensor.

Each tensor is summed on its own device into 64 bits, and SHA-256 joins the sums with the tensors'
names, shapes and dtypes. Knows tensors; nothing about models or engines.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqproc.engines.gumbel import split64

_WORD_BYTES = 8
_BLOCK_BYTES = {"cpu": 1 << 19}  # what fits a core's cache
_DEVICE_BLOCK_BYTES = 1 << 27
_DIGITS = 16  # of the hex digest
_SAMPLES = 64  # elements per tensor that are looked at before a remembered sum is trusted


def checksum(tensor: Tensor) -> int:
    """Σᵢ S(bᵢ, i) mod 2⁶⁴ over the tensor's 8-byte words bᵢ, the last one filled up with zeros.

    S is SplitMix64 (see `gumbel`). For each i it is a bijection of bᵢ, so that a change inside one
    word always changes the sum; changes of several words that cancel are a matter of 2⁻⁶⁴.
    """
    flat = tensor.detach().reshape(-1)
    block_bytes = _BLOCK_BYTES.get(flat.device.type, _DEVICE_BLOCK_BYTES)
    size = block_bytes // flat.element_size()
    num_words = -(-min(flat.nbytes, block_bytes) // _WORD_BYTES)
    indices = torch.arange(num_words, device=flat.device)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, len(flat), size):
        words = _words(flat[start : start + size])
        first = start * flat.element_size() // _WORD_BYTES
        total += split64(words, indices[: len(words)] + first).sum()
    return int(total)


def _words(block: Tensor) -> Tensor:
    """The bytes of a one-dimensional tensor as int64, in a copy: a view could be misaligned."""
    data = block.clone().view(torch.uint8)
    return functional.pad(data, (0, -len(data) % _WORD_BYTES)).view(torch.int64)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hex digest of named tensors, in whatever order they come."""
    return _join((name, tensor, checksum(tensor)) for name, tensor in tensors)


def _join(parts: Iterable[tuple[str, Tensor, int]]) -> str:
    lines = sorted(
        f"{name} {list(tensor.shape)} {tensor.dtype} {total}\n" for name, tensor, total in parts
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    tensor: weakref.ref[Tensor]
    data_ptr: int
    version: int
    sample: list[int]  # bytes
    checksum: int

    def is_of(self, tensor: Tensor) -> bool:
        return (
            self.tensor() is tensor
            and self.data_ptr == tensor.data_ptr()
            and self.version == version(tensor)
            and self.sample == _sample(tensor)
        )


class FingerprintCache:
    """`fingerprint` of tensors that seldom change: it sums up those that did.

    A tensor is taken for unchanged while it is the same object, with the same storage, the same
    version (which every operation of autograd's raises, an optimiser's step too) and the same
    values at a few places. So a write through ``.data`` is seen where it is dense; one that torch
    does not count and that spares those places is not.
    """

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def fingerprint(self, tensors: Mapping[str, Tensor]) -> str:
        """The digest that `fingerprint` gives."""
        self._seen = {name: self._look(name, tensor) for name, tensor in tensors.items()}
        return _join((name, tensors[name], seen.checksum) for name, seen in self._seen.items())

    def _look(self, name: str, tensor: Tensor) -> _Seen:
        seen = self._seen.get(name)
        if seen is not None and seen.is_of(tensor):
            return seen
        return _Seen(
            tensor=weakref.ref(tensor),
            data_ptr=tensor.data_ptr(),
            version=version(tensor),
            sample=_sample(tensor),
            checksum=checksum(tensor),
        )


def version(tensor: Tensor) -> int:
    """How often torch saw the tensor change in place; always 0 for those of inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> list[int]:
    flat = tensor.detach().reshape(-1)
    step = max(1, len(flat) // _SAMPLES)
    return flat[::step][:_SAMPLES].clone().view(torch.uint8).tolist()
