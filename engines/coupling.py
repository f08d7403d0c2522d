"""Coupled sampling: the token of a step as a function of its logits, the policy and a seed.

y = argmax_S (log q + g), with q the policy's distribution over the logits and g the Gumbel noise of
(draw seed, step, token id). It is a draw from q, and the same draw wherever the logits are the
same: in any engine, batch, order or process, up to logits so near to a tie that rounding decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqproc._util.by_device import ByDevice
from seqproc.engines.gumbel import gumbel_noise_batch
from seqproc.policy import SamplingPolicy, log_q

# Logits read at a time: several tensors of as many float64 numbers are alive meanwhile.
_BLOCK_ELEMENTS = ByDevice(cpu=1 << 20, accelerator=1 << 24)


def choose(
    logits_NV: Tensor, policy: SamplingPolicy, seeds_N: Tensor, steps_N: Tensor
) -> tuple[Tensor, Tensor]:
    """The next token of N draws.

    Args:
        logits_NV: raw logits. They are read in float64.
        policy: the sampling policy; for a greedy one there is no noise.
        seeds_N: the draws' seeds, as from `gumbel.seed_tensor`.
        steps_N: how many tokens each draw has so far.

    Returns:
        Token ids ``[N]`` and their log q ``[N]`` in nats, float64; NaN where the logits are.

    On an accelerator nothing is copied from the device or waited for.
    """
    if logits_NV.device.type == "mps":  # it has no float64
        logits_NV, seeds_N, steps_N = logits_NV.cpu(), seeds_N.cpu(), steps_N.cpu()
    num_rows = max(1, _BLOCK_ELEMENTS.on(logits_NV.device) // logits_NV.shape[-1])
    blocks = zip(
        logits_NV.split(num_rows), seeds_N.split(num_rows), steps_N.split(num_rows), strict=True
    )
    chosen = [_choose(logits, seeds, steps, policy) for logits, seeds, steps in blocks]
    tokens, log_qs = zip(*chosen, strict=True)
    return torch.cat(tokens), torch.cat(log_qs)


def _choose(
    logits_NV: Tensor, seeds_N: Tensor, steps_N: Tensor, policy: SamplingPolicy
) -> tuple[Tensor, Tensor]:
    on_cpu = logits_NV.device.type == "cpu"
    log_q_NV = log_q(logits_NV.double(), policy, may_wait=on_cpu)
    keys_NV = log_q_NV
    if policy.do_sample:
        keys_NV = log_q_NV + gumbel_noise_batch(seeds_N, steps_N, log_q_NV.shape[-1])
    tokens_N1 = keys_NV.argmax(-1, keepdim=True)
    return tokens_N1.squeeze(-1), log_q_NV.gather(-1, tokens_N1).squeeze(-1)


def one_hot_scores(tokens_N: Tensor, scores_NV: Tensor) -> Tensor:
    """Scores like ``scores_NV`` whose argmax is the given tokens: 0 there, −∞ accelerator."""
    nothing = torch.full_like(scores_NV, float("-inf"))
    return nothing.scatter(-1, tokens_N.to(scores_NV.device).unsqueeze(-1), 0.0)
