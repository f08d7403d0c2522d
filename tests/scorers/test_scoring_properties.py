"""What scores must not depend on: order, batches, chunks, padding, prompts in common or not.

Each property is checked on every field of the scores, in float32 and in true float64, on random
families of sequences. Cases where a support hangs on float32 rounding are left out.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.devices import everywhere
from helpers.scorer_helpers import as_batch, distance, float64_profiles, random_sequences
from seqproc.policy import PolicyStatistics, SamplingPolicy, TokenScores
from seqproc.scorers import TeacherForcingScorer, TokenSequence, token_sequences

V = 13
EOS = (2, 5)
EVERYTHING = ["logprobs", "logqs", *(field.name for field in fields(PolicyStatistics))]
BOUNDS = {"float32": 2e-5, "float64": 1e-11}
POLICIES = {
    "full": SamplingPolicy(top_p=1.0),
    "nucleus": SamplingPolicy(temperature=0.8, top_p=0.9),
    "greedy": SamplingPolicy(do_sample=False),
}

# Modules of the two chunk sizes; the package's own name `measure` is the function.
TEACHER_FORCING = importlib.import_module("seqproc.scorers.teacher_forcing")
MEASURE = importlib.import_module("seqproc.scorers.measure")

few = settings(derandomize=True, max_examples=6, deadline=None)
each_case = pytest.mark.parametrize(
    ("family", "precision", "policy"),
    [(f, p, q) for f in ("llama", "gpt2") for p in BOUNDS for q in POLICIES],
)


@functools.cache
def scorer_of(family: str, precision: str) -> TeacherForcingScorer:
    """On a model of a thousand parameters, with two layers so that attention matters."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "llama":
        config = LlamaConfig(
            vocab_size=V,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.4,
            **special,
        )
    else:
        config = GPT2Config(
            vocab_size=V,
            n_embd=8,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.4,
            **special,
        )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    profiles = float64_profiles() if precision == "float64" else None
    return TeacherForcingScorer(model, EOS, profiles)


@st.composite
def families(draw: st.DrawFn) -> list[TokenSequence]:
    """Two to seven sequences over one to three prompts; some responses empty, not all."""
    num_prompts = draw(st.integers(1, 3))
    prompts = [draw(st.integers(1, 7)) for _ in range(num_prompts)]
    pairs = st.tuples(st.integers(0, num_prompts - 1), st.integers(0, 8))
    chosen = draw(st.lists(pairs, min_size=2, max_size=7).filter(lambda c: any(t for _, t in c)))
    seed = draw(st.integers(0, 2**20))
    common = random_sequences(V, [(p, 0) for p in prompts], seed)
    own = random_sequences(V, [(1, t) for _, t in chosen], seed + 1)
    return [
        TokenSequence(prompt_ids=common[m].prompt_ids, response_ids=s.response_ids)
        for (m, _), s in zip(chosen, own, strict=True)
    ]


class Case:
    """One scorer and policy, the plainest scores of some sequences, and the bound."""

    def __init__(
        self, family: str, precision: str, policy: str, sequences: list[TokenSequence]
    ) -> None:
        self.scorer = scorer_of(family, precision)
        self.policy, self.bound = POLICIES[policy], BOUNDS[precision]
        self.sequences = sequences
        self.plain = self.score(batch_size=1, share_prompts=False)
        assume(self._is_clear_cut())

    def score(self, sequences: Any = None, policy: Any = None, **more: Any) -> list[TokenScores]:
        """Without gradients; of these sequences under this policy unless told otherwise."""
        chosen = self.sequences if sequences is None else sequences
        return self.scorer.score(chosen, policy or self.policy, **more)[0]

    def _is_clear_cut(self) -> bool:
        """No support that another rounding, of a logit or of a mass, would change."""
        if any(bool((s.stats.cut_margin < 1e-3).any()) for s in self.plain):
            return False
        if not self.policy.do_sample or self.policy.top_p == 1:
            return True
        less, more = (
            self.score(policy=replace(self.policy, top_p=self.policy.top_p + shift))
            for shift in (-1e-4, 1e-4)
        )
        return distance(less, more, ["head_mass"]) < 1e-6

    def gap(self, found: list[TokenScores]) -> float:
        """Largest difference from the plainest scores, over every token and field."""
        return distance(self.plain, found, EVERYTHING)


@each_case
@few
@given(sequences=families(), data=st.data())
def test_order_does_not_matter(family, precision, policy, sequences, data):
    case = Case(family, precision, policy, sequences)
    order = data.draw(st.permutations(range(len(sequences))))
    moved = case.score([sequences[i] for i in order])
    back: list[Any] = [None] * len(order)
    for position, i in enumerate(order):
        back[i] = moved[position]
    assert case.gap(back) < case.bound


@each_case
@few
@given(
    sequences=families(),
    batch_size=st.one_of(st.none(), st.integers(1, 8)),
    budget=st.integers(1, 120),
    share=st.booleans(),
)
def test_batches_do_not_matter(family, precision, policy, sequences, batch_size, budget, share):
    case = Case(family, precision, policy, sequences)
    found = case.score(batch_size=batch_size, token_budget=budget, share_prompts=share)
    assert case.gap(found) < case.bound


@each_case
@few
@given(sequences=families())
def test_company_does_not_matter(family, precision, policy, sequences):
    """A sequence scores the same on its own, among others, and twice in a batch."""
    case = Case(family, precision, policy, sequences)
    twice = case.score([*sequences, *sequences])
    assert case.gap(twice[: len(sequences)]) < case.bound
    assert case.gap(twice[len(sequences) :]) < case.bound
    assert case.gap([case.score([s])[0] for s in sequences]) < case.bound


@each_case
@few
@given(sequences=families(), rows=st.integers(1, 9), fewer=st.integers(1, 9))
def test_chunks_do_not_matter(family, precision, policy, sequences, rows, fewer):
    """Those of the head, and within them those of the statistics; with a graph too."""
    case = Case(family, precision, policy, sequences)
    with (
        mock.patch.object(TEACHER_FORCING, "_HEAD_ELEMENTS", everywhere(rows * V)),
        mock.patch.object(MEASURE, "_CHUNK_ELEMENTS", everywhere(fewer * V)),
        mock.patch.object(MEASURE, "_CHUNK_ELEMENTS_WITH_GRAD", everywhere(fewer * V)),
    ):
        assert case.gap(case.score()) < case.bound
        graphed = case.scorer.score_with_grad(sequences, case.policy)
        assert case.gap(graphed) < case.bound


@each_case
@few
@given(sequences=families(), left=st.integers(0, 5), right=st.integers(0, 5), pad=st.integers(0, 5))
def test_padding_given_does_not_matter(family, precision, policy, sequences, left, right, pad):
    case = Case(family, precision, policy, sequences)
    batch = as_batch(sequences, left=left, right=right, pad=pad)
    assert case.gap(case.score(token_sequences(batch))) < case.bound


@each_case
@few
@given(sequences=families())
def test_prompts_in_common_do_not_matter(family, precision, policy, sequences):
    case = Case(family, precision, policy, sequences)
    assert case.gap(case.score(share_prompts=True)) < case.bound
    assert case.gap(case.score(share_prompts=False)) < case.bound


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_families_do_share_and_every_field_is_compared(name):
    """The twin: another token in one prompt, or another temperature, is seen in each field."""
    lengths = [(4, 5), (4, 3), (4, 1)]
    drawn = random_sequences(V, lengths, seed=3)
    sequences = [
        TokenSequence(prompt_ids=drawn[0].prompt_ids, response_ids=s.response_ids) for s in drawn
    ]
    scorer, nucleus = scorer_of("llama", "float64"), POLICIES["nucleus"]
    assert any(batch.prompts is not None for batch in scorer.schedule(sequences).batches)
    plain = scorer.score(sequences, nucleus)[0]
    other = sequences[0].prompt_ids.clone()
    other[0] = (other[0] + 1) % V
    changed = [TokenSequence(prompt_ids=other, response_ids=s.response_ids) for s in sequences]
    assert distance(plain, scorer.score(changed, nucleus)[0], [name]) > BOUNDS["float32"]
    if name not in ("logprobs", "eos_prob"):
        warmer = replace(nucleus, temperature=0.801)
        assert distance(plain, scorer.score(sequences, warmer)[0], [name]) > BOUNDS["float32"]


@pytest.mark.parametrize(
    ("rows", "chunks"), [(4, [4] * 10), (16, [16, 16, 8]), (37, [32, 8])], ids=str
)
def test_chunks_are_really_made(rows, chunks):
    """The twin of the chunk sizes: the head is called as often as they say."""
    scorer = scorer_of("llama", "float32")
    sequences = random_sequences(V, [(3, 40)])
    calls: list[int] = []
    logits = scorer.parts.logits

    def counting(states: torch.Tensor, mapping: Any) -> torch.Tensor:
        calls.append(len(states))
        return logits(states, mapping)

    with (
        mock.patch.object(TEACHER_FORCING, "_HEAD_ELEMENTS", everywhere(rows * V)),
        mock.patch.object(scorer.parts, "logits", counting),
    ):
        scorer.score(sequences, POLICIES["full"])
    assert calls == chunks
