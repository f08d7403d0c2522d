"""Log-probabilities of the whole vocabulary: how vLLM is asked for them, and what it answers.

Along a path vLLM decodes the tokens that it is given, by the trace replay of its model runner V2.
Pure functions of policies and of vLLM's outputs; starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from seqproc.engines.base import Path
from seqproc.engines.contexts import decoded_tokens
from seqproc.policy import SamplingPolicy

ALL_IDS = -1  # of `max_logprobs` and `logprobs`
_PATHS_AT_A_TIME = 8
# vLLM makes Python numbers of all log-probabilities, those of every step of the requests that it
# holds, whichever are asked about: about 120 bytes each.
_NUMBERS_AT_A_TIME = 1 << 22


def paths_at_a_time(paths: Sequence[Path], vocabulary: int) -> int:
    """How many paths vLLM is given at a time, so that their log-probabilities fit in memory."""
    longest = 1 + max((path.last for path in paths), default=0)
    return min(_PATHS_AT_A_TIME, max(1, _NUMBERS_AT_A_TIME // (vocabulary * longest)))


def path_params(path: Path, policy: SamplingPolicy) -> Any:
    """vLLM's parameters for a path, with the log-probabilities of the whole vocabulary.

    Args:
        path: its tokens are decoded; without any, one token is sampled.
        policy: one that vLLM's own sampler is asked for.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=policy.temperature,
        top_p=policy.top_p,
        top_k=0,
        min_p=0.0,
        seed=0,  # without one, runner V2 draws it from numpy's global generator
        max_tokens=1 + path.last,
        trace_decode_token_ids=decoded_tokens(path) if path.last else None,
        ignore_eos=True,
        logprobs=ALL_IDS,
        flat_logprobs=True,
        detokenize=False,  # else every id of the vocabulary is decoded
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def log_distributions(output: Any, path: Path, vocabulary: int) -> Iterator[Tensor]:
    """The log-probabilities that came at the steps of a path: each ``[V]``, float64, nats.

    Of each step vLLM lists the token that came first, and then all tokens in falling order.
    """
    listed = output.outputs[0].logprobs
    for step in path.steps:
        here = slice(listed.start_indices[step], listed.end_indices[step])
        values = torch.full((vocabulary,), float("nan"), dtype=torch.float64)
        ids = torch.tensor(listed.token_ids[here])
        values[ids] = torch.tensor(listed.logprobs[here], dtype=torch.float64)
        yield values
