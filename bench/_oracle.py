"""The oracle: full sorts of true float64 logits, sequence by sequence; and distances from it.

Shares with what it checks the model and the float64 forward, not the nucleus nor the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _peers import Case, Found, full_sort_scores, joined
from torch import Tensor

from seqproc.policy import SamplingPolicy

# Where float32 logits cannot move the mass before any token across top_p.
_CLEAR = 1e-4


def oracle(case: Case, policy: SamplingPolicy) -> Found:
    """Scores ``[R]`` in the order of the batches; the case's scorer is to be a float64 one."""
    found = [full_sort_scores(logits, tokens, policy) for logits, tokens in _single(case)]
    on_cpu = {name: values.cpu() for name, values in joined(found).items()}
    return on_cpu | {"gap": cut_gaps(case, policy)}


def cut_gaps(case: Case, policy: SamplingPolicy) -> Tensor:
    """How far top_p is from the nearest mass at which the support would change; ``[R]``."""
    return torch.cat([_gap(logits.double(), policy) for logits, _ in _single(case)]).cpu()


def _gap(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    if policy.top_p == 1:
        return torch.ones_like(logits[:, 0])
    masses = (logits / policy.temperature).softmax(-1).sort(descending=True).values.cumsum(-1)
    return (masses - policy.top_p).abs().amin(-1)


def _single(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``[T, V]`` and tokens ``[T]`` of each sequence on its own."""
    for sequence in (case.sequences[i] for i in case.order):
        ids = torch.cat([sequence.prompt_ids, sequence.response_ids]).to(case.scorer.device)
        ids = ids.unsqueeze(0)
        logits = case.scorer.logits(ids, torch.ones_like(ids))
        start = len(sequence.prompt_ids)
        yield logits[0, start - 1 : -1], ids[0, start:]


def largest_errors(case: Case, found: Found, expected: Found) -> dict[str, float]:
    """Largest absolute differences of tokens and of sequences' sums, in nats.

    ``_clear_of_cut``: over the tokens where rounding cannot have changed the support.
    ``one_sided_infinities``: tokens that are in the support of one alone.
    """
    errors: dict[str, float] = {}
    clear = expected["gap"] > _CLEAR
    for name in {"logprobs", "logqs", "rb_entropy"} & set(found):
        gap = _gaps(found[name], expected[name])
        errors[name] = float(gap.max())
        if not bool(clear.all()):
            errors[f"{name}_clear_of_cut"] = float(gap[clear].max())
    if "logqs" in found:
        sides = found["logqs"].isfinite() != expected["logqs"].isfinite()
        errors["one_sided_infinities"] = int(sides.sum())
    sums = _sums(case, expected)
    errors |= {name: float(_gaps(s, sums[name]).max()) for name, s in _sums(case, found).items()}
    return dict(sorted(errors.items()))


def _gaps(one: Tensor, other: Tensor) -> Tensor:
    gaps = (one.double() - other.double()).abs()
    return gaps.masked_fill(~(one.isfinite() & other.isfinite()), 0.0)


def _sums(case: Case, found: Found) -> Found:
    """log p of each sequence."""
    if "logprobs" not in found:
        return {name: found[name] for name in {"sequence_logprobs"} & set(found)}
    lengths = [length for batch in case.batches for length in batch.lengths]
    parts = found["logprobs"].double().split(lengths)
    return {"sequence_logprobs": torch.stack([part.sum() for part in parts])}
