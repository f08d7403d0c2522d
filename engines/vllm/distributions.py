"""Log-probabilities of the whole vocabulary: how vLLM is asked for them, and what it answers.

Pure functions of policies and of vLLM's outputs; starts nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqproc.policy import SamplingPolicy

ALL_IDS = -1  # of `max_logprobs` and `logprobs`
# vLLM makes Python numbers of all log-probabilities of the requests that it holds.
CONTEXTS_AT_A_TIME = 8


def distribution_params(policy: SamplingPolicy) -> Any:
    """vLLM's parameters for one token, with the log-probabilities of the whole vocabulary.

    Args:
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
        max_tokens=1,
        ignore_eos=True,
        logprobs=ALL_IDS,
        flat_logprobs=True,
        detokenize=False,  # else every id of the vocabulary is decoded
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def log_distribution(output: Any, vocabulary: int) -> Tensor:
    """The log-probabilities that came for the one token of an output: ``[V]``, float64, nats.

    vLLM lists the sampled token first, and then all tokens in falling order.
    """
    listed = output.outputs[0].logprobs
    values = torch.full((vocabulary,), float("nan"), dtype=torch.float64)
    values[torch.tensor(listed.token_ids)] = torch.tensor(listed.logprobs, dtype=torch.float64)
    return values
