"""The noise of vLLM's own sampler on its model runner V2, computed again.

V2 draws by the Gumbel-max trick. With M a mixing round and F the finaliser of murmur3 in its 32-bit
form, and words taken modulo 2³²:

    h(d) = F(M(M(M(M(d, seed low), seed high), position), token id) ^ 16)
    u = (h(0) + ½)·2⁻³²        g = −log(−log(1 − u)), in float32

or, with vLLM's option ``use_fp64_gumbel``, k the upper 53 bits of h(0x9E3779B9)·2³² + h(0),
u = (k + ½)·2⁻⁵³ and g = −log(−log u), in float64. The seed's halves are those of the signed 64-bit
number that vLLM is given. The position is that of the token before the one that is drawn, counted
from 0 at the first token of the prompt. Noise is hashed per token id: a nucleus changes none of it.

Knows the formula; nothing of vLLM. The tests hold it against vLLM's own kernel.

References: Appleby, MurmurHash3 (public domain), for M and F; vLLM,
``vllm/v1/worker/gpu/sample/gumbel.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqproc.engines.noise import Noise, NoiseFunction
from seqproc.engines.vllm.options import request_seeds

# Shapes: N draws, V tokens of the vocabulary. Words of 32 bits lie in int64.

_WORD = 0xFFFFFFFF
_HIGH_BITS = 0x9E3779B9  # the domain of the upper half of 64 bits
_LENGTH_MIXED_IN = 16  # bytes hashed: murmur3's last step takes their number


def native_noise(seeds_N: Tensor, positions_N: Tensor, vocab_size: int) -> Tensor:
    """Gumbel noise of every token: ``[N, V]``, float64 with the values that float32 gives.

    Args:
        seeds_N: int64, as vLLM is given them.
        positions_N: int64, of the tokens that the model was fed.
        vocab_size: V.
    """
    words_NV = _hashes(seeds_N, positions_N, vocab_size)
    uniforms_NV = words_NV.double().add_(0.5).mul_(2.0**-32).float()
    return (-(-_log_one_minus(uniforms_NV)).log()).double()


def native_noise_fp64(seeds_N: Tensor, positions_N: Tensor, vocab_size: int) -> Tensor:
    """The same with vLLM's option ``use_fp64_gumbel``: ``[N, V]``, float64."""
    low_NV = _hashes(seeds_N, positions_N, vocab_size)
    high_NV = _hashes(seeds_N, positions_N, vocab_size, domain=_HIGH_BITS)
    k_NV = (high_NV << 21) | (low_NV >> 11)
    uniforms_NV = k_NV.double().add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-53)
    return -(-uniforms_NV.log()).log()


def _hashes(seeds_N: Tensor, positions_N: Tensor, vocab_size: int, *, domain: int = 0) -> Tensor:
    words_N = torch.full_like(seeds_N, domain)
    for word_N in (seeds_N & _WORD, (seeds_N >> 32) & _WORD, positions_N & _WORD):
        words_N = _mix(words_N, word_N)
    tokens_V = torch.arange(vocab_size, dtype=torch.int64, device=seeds_N.device)
    return _finalise(_mix(words_N.unsqueeze(-1), tokens_V) ^ _LENGTH_MIXED_IN)


def _mix(hashes: Tensor, words: Tensor) -> Tensor:
    words = (_rotate_left(words * 0xCC9E2D51 & _WORD, 15) * 0x1B873593) & _WORD
    return (_rotate_left(hashes ^ words, 13) * 5 + 0xE6546B64) & _WORD


def _rotate_left(words: Tensor, places: int) -> Tensor:
    return ((words << places) | (words >> (32 - places))) & _WORD


def _finalise(words: Tensor) -> Tensor:
    words = (words ^ (words >> 16)) * 0x85EBCA6B & _WORD
    words = (words ^ (words >> 13)) * 0xC2B2AE35 & _WORD
    return words ^ (words >> 16)


def _log_one_minus(u: Tensor) -> Tensor:
    """log(1 − u) in float32 as vLLM has it: a series of eight terms below ¼, a logarithm above."""
    series = torch.zeros_like(u)
    for term in range(8, 0, -1):
        series = 1.0 / term + u * series
    return torch.where(u < 0.25, -u * series, (1.0 - u).clamp(min=2.0**-24).log())


def _of_requests(noise: Callable[[Tensor, Tensor, int], Tensor]) -> NoiseFunction:
    """The noise as a function of requests' seeds, the lengths of their prompts, and steps."""

    def values(seeds_N: Tensor, prompt_lengths_N: Tensor, steps_N: Tensor, vocab: int) -> Tensor:
        return noise(request_seeds(seeds_N), prompt_lengths_N + steps_N - 1, vocab)

    return values


# A key is a sum in float32 of numbers up to about 40 at T = 1. At a small T the logits' own error
# over T, which is allowed beside this one, is far larger than the rounding of so large a sum.
NATIVE_V2 = Noise(name="vLLM V2's murmur3", values=_of_requests(native_noise), error=2e-5)
NATIVE_V2_FP64 = Noise(
    name="vLLM V2's murmur3, float64", values=_of_requests(native_noise_fp64), error=2e-5
)
