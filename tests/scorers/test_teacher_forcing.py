"""Teacher-forced scores against numpy forwards; batches, what is left alone, adapters, failures."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from helpers import policy_oracle as oracle
from helpers.scorer_helpers import (
    as_batch,
    distance,
    float64_profiles,
    oracle_logits,
    random_sequences,
    read,
)
from seqproc.config import PrecisionConfig
from seqproc.errors import ConfigError, OverrideError, ScoringError, SequenceError
from seqproc.policy import SamplingPolicy
from seqproc.processor.assembly import logprob_results
from seqproc.scorers import (
    TeacherForcingScorer,
    TokenSequence,
    build_params_override,
    token_sequences,
)
from seqproc.types import Provenance

FAMILIES = ["tiny_llama", "tiny_qwen2", "tiny_gpt2"]
FULL = SamplingPolicy()
NUCLEUS = SamplingPolicy(temperature=0.8, top_p=0.95)
EVERYTHING = ("logprobs", "logqs", *(s for s in oracle.STATISTICS if s != "eos_prob"))


@pytest.fixture(params=FAMILIES)
def model(request):
    return request.getfixturevalue(request.param)()


@pytest.fixture
def sequences(model):
    return random_sequences(model.config.vocab_size)


def score(model, sequences, policy=FULL, *, precision=None, batch_size=8, **more):
    scorer = TeacherForcingScorer(model, precision=precision)
    return scorer.score(sequences, policy, batch_size=batch_size, **more)[0]


def oracle_gap(scores, logits, sequences, policy, names=("logprobs", "logqs", "rb_entropy")):
    """Largest error of these fields from the oracle's on these logits, over every token."""
    worst = 0.0
    for found, rows, sequence in zip(scores, logits, sequences, strict=True):
        assert found.logprobs.shape == sequence.response_ids.shape
        for t, token in enumerate(sequence.response_ids.tolist()):
            step = oracle.extended_step(rows[t], policy.temperature, policy.top_p)
            for name in names:
                by_token = {"logprobs": step.log_p, "logqs": step.log_q}.get(name)
                want = float(getattr(step, name) if by_token is None else by_token[token])
                got = float(read(found, name)[t])
                if got != want:
                    worst = max(worst, abs(got - want) / max(1, abs(want)))
    return worst


# The scores themselves.


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=str)
def test_float64_scores_match_an_independent_float64_forward(model, sequences, policy):
    logits = [oracle_logits(model, s) for s in sequences]
    scores = score(model, sequences, policy, precision=float64_profiles())
    assert {s.logprobs.dtype for s in scores} == {torch.float64}
    assert oracle_gap(scores, logits, sequences, policy, EVERYTHING) < 1e-9
    shifted = [rows + 1e-8 * (rows > 0) for rows in logits]
    assert oracle_gap(scores, shifted, sequences, policy) > 1e-9


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
def test_a_plain_double_model_is_not_float64(family, request):
    """The inner float32 casts of RMSNorm, rotary positions and attention cost seven digits."""
    model = request.getfixturevalue(family)()
    sequences = random_sequences(model.config.vocab_size)
    logits = [oracle_logits(model, s) for s in sequences]
    double = copy.deepcopy(model).double()
    plain = []
    for s in sequences:
        ids = torch.cat([s.prompt_ids, s.response_ids])[None]
        with torch.no_grad():
            rows = double(input_ids=ids, use_cache=False).logits[0, len(s.prompt_ids) - 1 : -1]
        plain.append(rows.log_softmax(-1).gather(-1, s.response_ids[:, None])[:, 0])
    worst = 0.0
    for found, rows, s in zip(plain, logits, sequences, strict=True):
        want = torch.from_numpy(rows).log_softmax(-1).gather(-1, s.response_ids[:, None])[:, 0]
        worst = max(worst, float((found - want).abs().max()) if len(want) else 0.0)
    assert worst > 1e-8


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=str)
def test_default_scores_are_within_their_bound(model, sequences, policy):
    logits = [oracle_logits(model, s) for s in sequences]
    scores = score(model, sequences, policy)
    assert {s.logprobs.dtype for s in scores} == {torch.float32}
    assert oracle_gap(scores, logits, sequences, policy) < 5e-4
    assert oracle_gap(scores, logits, sequences, SamplingPolicy(temperature=0.801)) > 5e-4


def test_float64_statistics_over_a_float32_forward(model, sequences):
    precision = PrecisionConfig(entropy_fp64=True)
    scorer = TeacherForcingScorer(model, precision=precision)
    logits = [np.zeros((0, model.config.vocab_size))] * len(sequences)
    for batch in scorer.schedule(sequences, batch_size=1).batches:
        with torch.no_grad(), scorer.forwarding(torch.float32):
            rows = scorer.parts.logits(scorer.parts.hidden_states(batch, None), None)
        assert rows.dtype == torch.float32
        logits[batch.indices[0]] = rows.double().numpy()
    scores = score(model, sequences, NUCLEUS, precision=precision, batch_size=1)
    assert {s.logqs.dtype for s in scores} == {torch.float64}
    assert oracle_gap(scores, logits, sequences, NUCLEUS, EVERYTHING) < 1e-12
    single = score(model, sequences, NUCLEUS, batch_size=1)
    assert oracle_gap(single, logits, sequences, NUCLEUS) > 1e-9


@pytest.mark.parametrize(("precision", "bound"), [(None, 2e-5), (float64_profiles(), 1e-11)])
@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=str)
def test_batch_size_and_order_do_not_matter(model, sequences, precision, bound, policy):
    alone = score(model, sequences, policy, precision=precision, batch_size=1)
    for size in (3, 8):
        together = score(model, sequences, policy, precision=precision, batch_size=size)
        assert distance(alone, together) < bound
        backwards = score(model, sequences[::-1], policy, precision=precision, batch_size=size)
        assert distance(alone, backwards[::-1]) < bound
    if policy is FULL:
        other = random_sequences(model.config.vocab_size, seed=1)
        moved = score(model, other, policy, precision=precision, batch_size=1)
        assert distance(alone, moved) > 1e-2


def test_padding_of_the_batch_given_does_not_matter(model, sequences):
    eos = model.config.eos_token_id
    ended = [
        TokenSequence(prompt_ids=s.prompt_ids, response_ids=torch.cat([s.response_ids, end]))
        for s, end in zip(sequences, [torch.tensor([eos])] * len(sequences), strict=True)
    ]
    plain = score(model, ended, NUCLEUS)
    for left, right in [(0, 0), (3, 5)]:
        batch = as_batch(ended, left=left, right=right, pad=eos)
        assert distance(plain, score(model, token_sequences(batch), NUCLEUS)) == 0


def test_eos_probability_over_several_ids(tiny_llama):
    model = tiny_llama()
    sequences = random_sequences(model.config.vocab_size)
    scorer = TeacherForcingScorer(model, (3, 8), float64_profiles())
    for found, s in zip(scorer.score(sequences, NUCLEUS, batch_size=4)[0], sequences, strict=True):
        steps = [
            oracle.extended_step(row, NUCLEUS.temperature, NUCLEUS.top_p, eos=(3, 8))
            for row in oracle_logits(model, s)
        ]
        assert found.stats.eos_prob.tolist() == pytest.approx(
            [float(x.eos_prob) for x in steps], abs=1e-12
        )


def test_an_eos_id_given_twice_is_one(tiny_llama):
    model, sequences = tiny_llama(), random_sequences(300, [(4, 3)])
    once, twice = (
        TeacherForcingScorer(model, eos).score(sequences, SamplingPolicy())[0][0].stats.eos_prob
        for eos in ([7], [7, 7])
    )
    assert torch.equal(once, twice)
    assert TeacherForcingScorer(model, [7, 9, 7]).eos_token_ids == (7, 9)


@pytest.mark.parametrize(
    ("prompt", "response", "message"),
    [
        ([], [1, 2], "prompt_ids is empty"),
        ([-1], [1], r"prompt_ids must lie in \[0, ∞\), got -1 to -1"),
        ([1], [2, -2], r"response_ids must lie in \[0, ∞\), got -2 to 2"),
        ([300], [1], r"prompt_ids of sequence 0 must lie in \[0, 300\), got 300 to 300"),
        ([1], [300], r"response_ids of sequence 0 must lie in \[0, 300\), got 300 to 300"),
    ],
)
def test_ids_that_no_token_has_are_told(tiny_llama, prompt, response, message):
    def score_ids():
        ids = [torch.tensor(some, dtype=torch.long) for some in (prompt, response)]
        one = TokenSequence(prompt_ids=ids[0], response_ids=ids[1])
        TeacherForcingScorer(tiny_llama()).score([one], SamplingPolicy())

    with pytest.raises(SequenceError, match=message):
        score_ids()


def test_greedy_scores_are_certain_and_the_rest_is_counted(tiny_llama):
    model = tiny_llama()
    sequences = [s for s in random_sequences(model.config.vocab_size) if len(s.response_ids)]
    first = int(oracle_logits(model, sequences[0])[0].argmax())
    sequences[0].response_ids[0] = first
    scores = score(model, sequences, SamplingPolicy(do_sample=False))
    missed = 0
    for found, s in zip(scores, sequences, strict=True):
        best = oracle_logits(model, s).argmax(-1) == s.response_ids.numpy()
        assert found.logqs.tolist() == [0.0 if hit else float("-inf") for hit in best]
        assert found.stats.rb_entropy.abs().max() == 0
        assert bool(found.logprobs.isfinite().all())
        missed += int((~best).sum())
    results = logprob_results(
        scores,
        as_batch(sequences),
        compute_rb=True,
        rb_graph=False,
        features=False,
        provenance=Provenance(policy=SamplingPolicy(do_sample=False), model=""),
    )
    assert sum(row[0] for row in results.out_of_support) == missed > 0
    assert missed < sum(len(s.response_ids) for s in sequences)
    assert results.sequence_logqs[1][0] == float("-inf")


# What scoring leaves alone, and what it tells.


def test_nothing_to_score_gives_empty_scores(tiny_llama):
    model = tiny_llama()
    sequences = random_sequences(20, [(2, 0), (3, 2), (0, 0)])
    scorer = TeacherForcingScorer(model, (0,), float64_profiles())
    for scores in (
        scorer.score(sequences, NUCLEUS, batch_size=2)[0],
        scorer.score_with_grad(sequences, NUCLEUS, batch_size=2),
    ):
        assert [len(s.logprobs) for s in scores] == [0, 2, 0]
        assert [len(s.stats.eos_prob) for s in scores] == [0, 2, 0]
    assert scorer.score([], NUCLEUS, batch_size=2) == [[]]
    assert scorer.score(sequences, NUCLEUS, batch_size=2, overrides=[]) == []


def test_progress_is_told_of_every_sequence_with_a_response(tiny_llama):
    model = tiny_llama()
    told: list[int] = []
    score(model, random_sequences(20), batch_size=3, progress=told.append)
    assert told == [3, 3, 2]


def test_modes_random_state_and_gradients_are_left_alone(tiny_gpt2):
    model = tiny_gpt2(resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    matmul = torch.get_float32_matmul_precision()
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    sequences = random_sequences(20)
    scores = scorer.score(sequences, FULL, batch_size=2)[0]
    scorer.score_with_grad(sequences, FULL, batch_size=2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == matmul
    assert not any(s.logprobs.requires_grad for s in scores)
    assert all(p.grad is None for p in model.parameters())
    assert torch.zeros(1, dtype=torch.float64).float().dtype == torch.float32  # no lift is left


def test_a_caller_s_autocast_does_not_reach_the_forward(tiny_llama):
    model = tiny_llama()
    sequences = random_sequences(20)
    scorer = TeacherForcingScorer(model)
    outside = score(model, sequences, NUCLEUS)
    graph = scorer.score_with_grad(sequences, NUCLEUS, batch_size=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distance(outside, score(model, sequences, NUCLEUS)) == 0
        inside = scorer.score_with_grad(sequences, NUCLEUS, batch_size=8)
        ids = torch.cat([sequences[1].prompt_ids, sequences[1].response_ids])[None]
        assert model(input_ids=ids, use_cache=False).logits.dtype == torch.bfloat16  # it was on
    assert distance(graph, inside) == 0


def test_a_bfloat16_model_is_upcast_unless_the_profiles_say_otherwise(tiny_llama):
    model = tiny_llama().to(torch.bfloat16)
    sequences = random_sequences(model.config.vocab_size)
    logits = [oracle_logits(model, s) for s in sequences]
    assert oracle_gap(score(model, sequences), logits, sequences, FULL) < 5e-4
    narrow = PrecisionConfig()
    narrow.tf_nograd.dtype, narrow.func_override.cast_params = "bfloat16", False
    scores = score(model, sequences, precision=narrow)
    assert {s.logprobs.dtype for s in scores} == {torch.float32}
    assert 1e-3 < oracle_gap(scores, logits, sequences, FULL) < 0.2
    narrow.tf_nograd.cast_logits_fp32 = False  # statistics are never below float32 all the same
    assert distance(scores, score(model, sequences, precision=narrow)) == 0


def test_weights_that_are_not_numbers_are_told_by_sequence_and_token(tiny_llama):
    model = tiny_llama(tie_word_embeddings=False)
    sequences = random_sequences(20)
    poisoned = 25
    sequences[5].prompt_ids[0] = poisoned
    scorer = TeacherForcingScorer(model)
    scorer.score(sequences, FULL, batch_size=1)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[poisoned] = float("nan")
    message = r"sequence 5: logprobs of generated token 0 is nan.*weights"
    with pytest.raises(ScoringError, match=message):
        scorer.score(sequences, NUCLEUS, batch_size=1)
    with pytest.raises(ScoringError, match=message):
        scorer.score_with_grad(sequences, FULL, batch_size=1)
    assert scorer.score(sequences[:5], FULL, batch_size=1)


# Adapters.


@pytest.fixture
def adapted(tiny_llama):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(tiny_llama(), config)


@pytest.mark.parametrize(("precision", "bound"), [(None, 1e-5), (float64_profiles(), 1e-11)])
def test_a_lora_model_scores_like_its_merged_self(adapted, tiny_llama, precision, bound):
    wide = copy.deepcopy(adapted).double() if precision else copy.deepcopy(adapted)
    merged = wide.merge_and_unload()
    sequences = random_sequences(20)
    with_adapter = score(adapted, sequences, precision=precision)
    assert distance(with_adapter, score(merged, sequences, precision=precision)) < bound
    assert distance(with_adapter, score(tiny_llama(), sequences, precision=precision)) > 1e-2


def test_lora_parameters_are_overridden_by_name(adapted, tiny_llama):
    sequences = random_sequences(20)
    trained = {n: p.detach() for n, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    off = {name: -value for name, value in trained.items() if "lora_B" in name}
    at_base = score(adapted, sequences, overrides=[build_params_override(adapted, off, 1.0)])
    assert distance(at_base, score(tiny_llama(), sequences)) < 1e-5
    half = score(adapted, sequences, overrides=[build_params_override(adapted, off, 0.5)])
    assert distance(at_base, half, ["logprobs"]) > 1e-3
    frozen = {"base_model.model.model.norm.weight": torch.ones(32)}
    with pytest.raises(OverrideError, match=r"moves 1 frozen parameter"):
        build_params_override(adapted, frozen, 1.0)
    with pytest.raises(OverrideError, match="no parameter named"):
        build_params_override(adapted, {"model.norm.weight": torch.ones(32)}, 1.0)


def test_progress_that_cannot_be_told_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="progress must be a function"):
        TeacherForcingScorer(tiny_llama()).score([], SamplingPolicy(), progress=5)  # type: ignore[arg-type]
