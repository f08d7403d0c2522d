"""Counter-based Gumbel noise: the randomness of coupled sampling, as a pure function.

``y = argmax_S (log q + g)`` is a draw from q when the g of each token is an independent standard
Gumbel variable (the Gumbel-max trick). Here g is no stream but a hash of (draw seed, step, token
id), so that a draw's noise is the same in any engine, batch, order, process or device.

Let S(s, n) be output n = 0, 1, … of the SplitMix64 generator seeded with s:

    S(s, n) = mix(s + (n + 1)·γ mod 2⁶⁴),   γ = 0x9E3779B97F4A7C15

with SplitMix64's finaliser as mix. The 64 bits of a token are S(S(S(seed, 0), step), token id).
Their upper 52 give k, u = (k + ½)·2⁻⁵² and g = −log(−log u). With 52 bits k + ½ is exact, and u
lies strictly inside (0, 1); with 53 it would be rounded, at the end to u = 1 and g = ∞.

All integers are computed in int64, which wraps as uint64 does; u is the same on every device, and
g up to the last bit of the device's logarithm. Knows nothing about models or policies.

References: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), for
SplitMix64; Maddison, Tarlow and Minka, "A* sampling" (2014), for the Gumbel-max trick.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqproc.errors import ConfigError

# Shapes: N draws, V tokens of the vocabulary.

_TWO_63, _TWO_64 = 1 << 63, 1 << 64


def signed64(bits: int) -> int:
    """The signed 64-bit integer with the same bits as an unsigned one (two's complement)."""
    return bits - _TWO_64 if bits >= _TWO_63 else bits


_GAMMA = signed64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = signed64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = signed64(0x94D049BB133111EB)
_UNIFORM_BITS = 52


def gumbel_noise(
    seed: int, step: int, vocab_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Gumbel noise of every token at one step of one draw: ``[V]``, float64.

    Args:
        seed: the draw's seed, unsigned 64-bit.
        step: index of the generated token, from 0.
        vocab_size: V. The noise of a token does not depend on it.
        device: where to compute.

    Raises:
        ConfigError: when the seed is not in [0, 2⁶⁴).
    """
    steps = torch.tensor([step], dtype=torch.int64, device=device)
    return gumbel_noise_batch(seed_tensor([seed], device), steps, vocab_size)[0]


def gumbel_noise_batch(seeds: Tensor, steps: Tensor, vocab_size: int) -> Tensor:
    """Gumbel noise of every token for N draws at their steps: ``[N, V]``, float64.

    Args:
        seeds: ``[N]`` int64, as from `seed_tensor`.
        steps: ``[N]`` int64.
        vocab_size: V.
    """
    keys = split64(split64(seeds, torch.zeros_like(steps)), steps)
    tokens = torch.arange(vocab_size, dtype=torch.int64, device=seeds.device)
    bits = split64(keys.unsqueeze(-1), tokens)
    k = _unsigned_shift(bits, 64 - _UNIFORM_BITS).double()
    uniforms = k.add_(0.5).mul_(2.0**-_UNIFORM_BITS)  # both exact
    return uniforms.log_().neg_().log_().neg_()


def seed_tensor(seeds: list[int], device: torch.device | str | None = None) -> Tensor:
    """Unsigned 64-bit seeds as the int64 tensor ``[N]`` with the same bits.

    Raises:
        ConfigError: when a seed is not in [0, 2⁶⁴).
    """
    for seed in seeds:
        if not is_seed(seed):
            raise ConfigError(f"a seed must be an integer in [0, 2**64), got {seed!r}")
    return torch.tensor([signed64(int(seed)) for seed in seeds], dtype=torch.int64, device=device)


def is_seed(value: object) -> bool:
    """Whether a value is an integer, Python's or numpy's, in [0, 2⁶⁴)."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return is_integer and 0 <= int(value) < _TWO_64  # type: ignore[call-overload]


def split64(seeds: Tensor, indices: Tensor) -> Tensor:
    """S(seed, index): output ``index`` of SplitMix64 seeded with ``seed``; int64, element-wise."""
    return finalise64(seeds + (indices + 1) * _GAMMA)


def finalise64(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64 bits; int64, element-wise."""
    bits = (bits ^ _unsigned_shift(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ _unsigned_shift(bits, 27)) * _MULTIPLIER_2
    return bits ^ _unsigned_shift(bits, 31)


def _unsigned_shift(bits: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 copies the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
