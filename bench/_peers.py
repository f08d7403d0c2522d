"""The contestants: ways to score the same tokens of the same model, each a small function.

All get the batches that seqproc planned and, where a model runs on single sequences, these in the
order of the batches; so that what they find can be compared token by token. Those that are not
ours run under the C library's own allocation, as they would in a process without seqproc; the
bare forward and TRL also under ours.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from _measuring import system_allocator
from torch import Tensor
from torch.nn import functional

from seqproc.policy import SamplingPolicy
from seqproc.scorers import Batch, TeacherForcingScorer, TokenSequence

NUCLEUS, WHOLE = SamplingPolicy(top_p=0.95), SamplingPolicy(top_p=1.0)
_FILTERED_ROWS = 64  # rows of logits per chunk of the sort-based filter

# logprobs, logqs, rb_entropy: [R] in the order of the batches. sequence_logprobs: [N].
Found = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and tokens to score, with the batches that all contestants use."""

    model: Any
    tokenizer: Any
    scorer: TeacherForcingScorer
    sequences: list[TokenSequence]
    batches: list[Batch]

    @classmethod
    def of(
        cls, scorer: TeacherForcingScorer, tokenizer: Any, sequences: list[TokenSequence]
    ) -> Case:
        """Plan the batches, without shared prompts."""
        return cls(
            model=scorer.model,
            tokenizer=tokenizer,
            scorer=scorer,
            sequences=sequences,
            batches=[
                batch.to(scorer.device)
                for batch in scorer.schedule(sequences, share_prompts=False).batches
            ],
        )

    @property
    def order(self) -> list[int]:
        """Of the sequences, as they come in the batches."""
        return [i for batch in self.batches for i in batch.indices]

    @property
    def token_budget(self) -> int:
        """That leads to the same batches whatever memory is free later."""
        return max(batch.num_tokens for batch in self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A way to score."""

    name: str
    run: Callable[[Case, SamplingPolicy], Found]
    policy: SamplingPolicy = WHOLE
    package: str | None = None  # to import, beyond what seqproc needs
    install: str = ""
    allocator: Callable[[], AbstractContextManager[None]] = system_allocator  # that it runs under

    def score(self, case: Case) -> Found:
        """Score the case's tokens."""
        with self.allocator():
            found = self.run(case, self.policy)
        return {name: values.cpu() for name, values in found.items()}

    @property
    def missing(self) -> str | None:
        """Why it cannot run."""
        if self.package is None or importlib.util.find_spec(self.package):
            return None
        return f"not installed: pip install {self.install}"


def bare(case: Case, _: SamplingPolicy) -> Found:
    """The baseline: logits of the positions that predict responses, and nothing done with them."""
    for batch in case.batches:
        _logits(case, batch)
    return {}


def ours(case: Case, policy: SamplingPolicy, share_prompts: bool = False) -> Found:
    """seqproc, all statistics."""
    budget = None if share_prompts else case.token_budget
    (scores,) = case.scorer.score(
        case.sequences, policy, share_prompts=share_prompts, token_budget=budget
    )
    ordered = [scores[i] for i in case.order]
    return {
        "logprobs": torch.cat([s.logprobs for s in ordered]),
        "logqs": torch.cat([s.logqs for s in ordered]),
        "rb_entropy": torch.cat([s.stats.rb_entropy for s in ordered]),
    }


def naive(case: Case, _: SamplingPolicy) -> Found:
    """`log_softmax` of the logits of all positions, padding too."""
    found = []
    for batch in case.batches:
        logits = case.model(
            input_ids=batch.inputs, attention_mask=batch.inputs_mask, use_cache=False
        ).logits
        logprobs = logits.log_softmax(-1).flatten(0, 1)
        found.append(logprobs[batch.read, batch.targets])
    return {"logprobs": torch.cat(found)}


def per_sequence(case: Case, policy: SamplingPolicy) -> Found:
    """One forward per sequence, in the manner of the processor that the specification describes.

    Prompts are padded on the left to the longest of them, and the vocabulary is sorted wherever a
    sort will do: for the nucleus of H, that of log q and that of the diagnostics, and for the first
    two values of q and of a.
    """
    found, width = [], max(len(sequence.prompt_ids) for sequence in case.sequences)
    for i in case.order:
        sequence = case.sequences[i]
        ids = torch.cat([sequence.prompt_ids, sequence.response_ids]).to(case.scorer.device)
        padding = (width - len(sequence.prompt_ids), 0)
        mask = functional.pad(torch.ones_like(ids), padding).unsqueeze(0)
        logits = case.model(
            input_ids=functional.pad(ids, padding).unsqueeze(0),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        ).logits
        found.append(
            full_sort_scores(logits[0, width - 1 : -1], ids[-len(sequence.response_ids) :], policy)
        )
    return joined(found)


def trl(case: Case, _: SamplingPolicy) -> Found:
    """TRL's pair of functions, on the batches' logits as [N, T, V]."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    found = []
    for batch in case.batches:
        shape = (len(batch.lengths), -1)  # responses are of one length here
        logits = _logits(case, batch).unflatten(0, shape)
        logprobs = selective_log_softmax(logits, batch.targets.unflatten(0, shape))
        entropy = entropy_from_logits(logits)
        found.append({"logprobs": logprobs.flatten(), "rb_entropy": entropy.flatten()})
    return joined(found)


def lm_eval(case: Case, _: SamplingPolicy) -> Found:
    """lm-evaluation-harness, on token ids; log p summed over each response."""
    harness = _harness(case.model, case.tokenizer, max(len(b.indices) for b in case.batches))
    ordered = [case.sequences[i] for i in case.order]
    requests = [(("", ""), s.prompt_ids.tolist(), s.response_ids.tolist()) for s in ordered]
    answers = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    return {"sequence_logprobs": torch.tensor([sum_ for sum_, _ in answers], dtype=torch.float64)}


def sorted_filter(case: Case, policy: SamplingPolicy) -> Found:
    """The usual top-p filter, a few rows at a time: log q alone."""
    found = []
    for batch in case.batches:
        states = _hidden(case, batch).split(_FILTERED_ROWS)
        for rows, tokens in zip(states, batch.targets.split(_FILTERED_ROWS), strict=True):
            logits = case.model.get_output_embeddings()(rows)
            found.append(logq_top_p(logits, tokens, policy))
    return {"logqs": torch.cat(found)}


_TRL, _LM_EVAL = ("trl", "trl==1.16.0"), ("lm_eval", "lm-eval==0.4.13")
BARE = Contestant(
    name="bare forward: backbone + lm_head, seqproc's allocator", run=bare, allocator=nullcontext
)
LM_EVAL = Contestant(
    name="lm-evaluation-harness (sum of log p)",
    run=lm_eval,
    package=_LM_EVAL[0],
    install=_LM_EVAL[1],
)
CONTESTANTS: Sequence[Contestant] = (
    BARE,
    Contestant(name="bare forward, the system's allocator", run=bare),
    Contestant(
        name="seqproc, all statistics, top_p=0.95",
        run=ours,
        policy=NUCLEUS,
        allocator=nullcontext,
    ),
    Contestant(name="seqproc, all statistics, top_p=1", run=ours, allocator=nullcontext),
    Contestant(name="naive log_softmax (log p)", run=naive),
    Contestant(name="per sequence, full sorts, top_p=0.95", run=per_sequence, policy=NUCLEUS),
    Contestant(name="per sequence, top_p=1", run=per_sequence),
    Contestant(name="TRL (log p, untruncated H)", run=trl, package=_TRL[0], install=_TRL[1]),
    Contestant(
        name="TRL, seqproc's allocator",
        run=trl,
        package=_TRL[0],
        install=_TRL[1],
        allocator=nullcontext,
    ),
    LM_EVAL,
    Contestant(name="sorted top-p filter (log q), top_p=0.95", run=sorted_filter, policy=NUCLEUS),
)


def full_sort_scores(logits: Tensor, tokens: Tensor, policy: SamplingPolicy) -> Found:
    """What the specification's helpers give, each from logits ``[T, V]`` anew."""
    rb_entropy = rb_entropies_top_p(logits, policy)
    logqs = logq_top_p(logits, tokens, policy)
    logprobs = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return {
        "logprobs": logprobs,
        "logqs": logqs,
        "rb_entropy": rb_entropy,
        **distribution_diagnostics(logits, policy),
    }


def rb_entropies_top_p(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    """H(q) ``[T]``."""
    log_q = _log_q(logits, policy)
    return -(log_q.exp() * log_q.masked_fill(log_q == float("-inf"), 0.0)).sum(-1)


def logq_top_p(logits: Tensor, tokens: Tensor, policy: SamplingPolicy) -> Tensor:
    """log q of the tokens ``[T]``."""
    return _log_q(logits, policy).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def distribution_diagnostics(logits: Tensor, policy: SamplingPolicy) -> Found:
    """The other statistics of q, each ``[T]``."""
    a = logits / policy.temperature
    log_q = _log_q(logits, policy)
    kept, q = log_q > float("-inf"), log_q.exp()
    head = a.softmax(-1).masked_fill(~kept, 0.0).sum(-1)
    entropy = -(q * log_q.masked_fill(~kept, 0.0)).sum(-1)
    falling = a.masked_fill(~kept, float("-inf")).sort(dim=-1, descending=True).values
    top1_prob = q.sort(dim=-1, descending=True).values[..., 0]
    collision, mean = q.square().sum(-1), (q * a).sum(-1)
    return {
        "head_mass": head,
        "tail_mass": 1 - head,
        "two_point_entropy": torch.special.entr(head) + torch.special.entr(1 - head),
        "top1_prob": top1_prob,
        "margin": (falling[..., 0] - falling[..., 1]).masked_fill(kept.sum(-1) == 1, 0.0),
        "collision": collision,
        "renyi2": -collision.log(),
        "eff_support": entropy.exp(),
        "logit_mean": mean,
        "logit_var": (q * (a - mean.unsqueeze(-1)).square()).sum(-1),
    }


def _log_q(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    a = logits / policy.temperature
    if policy.top_p < 1:
        # Stable: of tokens alike the one with the smaller id comes first.
        probs, ids = a.softmax(-1).sort(dim=-1, descending=True, stable=True)
        dropped = probs.cumsum(-1).roll(1, -1) >= policy.top_p
        dropped[..., 0] = False
        a = a.masked_fill(dropped.scatter(-1, ids, dropped), float("-inf"))
    return a.log_softmax(-1)


def joined(found: Sequence[Found]) -> Found:
    """Join what was found in parts."""
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _hidden(case: Case, batch: Batch) -> Tensor:
    output = case.model.base_model(
        input_ids=batch.inputs, attention_mask=batch.inputs_mask, use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden.flatten(0, 1)[batch.read]


def _logits(case: Case, batch: Batch) -> Tensor:
    logits: Tensor = case.model.get_output_embeddings()(_hidden(case, batch))
    return logits


@functools.lru_cache(maxsize=1)
def _harness(model: Any, tokenizer: Any, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
