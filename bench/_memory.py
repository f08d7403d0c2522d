"""The part on memory: what a head needs beyond weights and hidden states, and with gradients."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from _data import random_sequences
from _measuring import LiveStorages, Row, tensor_peak
from _peers import NUCLEUS, WHOLE
from torch import Tensor

from seqproc.policy import SamplingPolicy
from seqproc.scorers import Batch, TeacherForcingScorer, TokenSequence
from seqproc.scorers.model_parts import SplitModel

PROMPT_TOKENS = 90
_WIDE_VOCABULARY = 151_936


class StatesUncounted:
    """A model's parts whose backbone and hidden states are left out of the count."""

    def __init__(self, parts: SplitModel, storages: LiveStorages) -> None:
        self._parts, self._storages = parts, storages
        self.vocab_size, self.has_head = parts.vocab_size, parts.has_head
        self.can_share_prompts = parts.can_share_prompts

    def hidden_states(self, batch: Batch, mapping: Any) -> Tensor:
        """As the parts do."""
        with self._storages.paused():
            return self._parts.hidden_states(batch, mapping)

    def head_tensors(self, mapping: Any, /) -> dict[str, Tensor]:
        """As the parts do."""
        return self._parts.head_tensors(mapping)

    def logits(self, hidden: Tensor, head: Any, /) -> Tensor:
        """As the parts do."""
        return self._parts.logits(hidden, head)


def memory_rows(model: Any, few: int) -> list[Row]:
    """Peaks at the model's vocabulary and at a wide one, for few sequences and eight times more."""
    wide = wide_model().to(model.device)
    rows = [
        _head_row(m, number, policy)
        for m in (model, wide)
        for number in (few, 8 * few)
        for policy in (NUCLEUS, WHOLE)
    ]
    trained = _with_grad_rows(wide, 2 * few, train_head=True)
    return [*rows, *trained, *_with_grad_rows(wide, 2 * few, train_head=False)]


def wide_model() -> Any:
    """A random Qwen2 of two layers with a tied head of 151,936 rows."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=_WIDE_VOCABULARY,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=2,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def _head_row(model: Any, number: int, policy: SamplingPolicy) -> Row:
    scorer = TeacherForcingScorer(model, (0,))
    vocabulary = model.config.vocab_size
    sequences = random_sequences(vocabulary, number, PROMPT_TOKENS)
    with LiveStorages() as storages:
        scorer.parts = StatesUncounted(scorer.parts, storages)
        scorer.score(sequences, policy, share_prompts=False)
    return Row(
        part="memory",
        name=f"score, V={vocabulary:,}, {number} sequences, top_p={policy.top_p:g}",
        tensor_peak_bytes=storages.peak,
        note="beyond weights and hidden states",
    )


def _with_grad_rows(model: Any, number: int, *, train_head: bool) -> Iterable[Row]:
    sequences = random_sequences(model.config.vocab_size, number, PROMPT_TOKENS)
    model.get_output_embeddings().weight.requires_grad_(train_head)
    for parameter in model.parameters():  # there beforehand, as with weights
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    paths = {"naive, logits of all positions": _naive_backward, "seqproc": _our_backward}
    peaks = {name: tensor_peak(partial(path, model, sequences)) for name, path in paths.items()}
    model.zero_grad(set_to_none=True)
    head = "trained" if train_head else "frozen"
    return [
        Row(
            part="memory",
            name=f"backward, V={_WIDE_VOCABULARY:,}, {number} sequences, head {head}: {name}",
            tensor_peak_bytes=peak,
            baseline="naive",
            ratio=peak / next(iter(peaks.values())),
            note="with the forward, of sum log p; beyond weights and their gradients",
        )
        for name, peak in peaks.items()
    ]


def _our_backward(model: Any, sequences: list[TokenSequence]) -> None:
    scorer = TeacherForcingScorer(model, (0,))
    scores = scorer.score_with_grad(sequences, NUCLEUS, share_prompts=False)
    torch.cat([s.logprobs for s in scores]).sum().backward()


def _naive_backward(model: Any, sequences: list[TokenSequence]) -> None:
    prompt = len(sequences[0].prompt_ids)  # all of one length here: nothing is padded
    ids = torch.stack([torch.cat([s.prompt_ids, s.response_ids]) for s in sequences])
    ids = ids.to(model.device)
    logprobs = model(input_ids=ids[:, :-1], use_cache=False).logits.log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    chosen[:, prompt - 1 :].sum().backward()
