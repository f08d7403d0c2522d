"""The sampling measure against mpmath on enumerated vocabularies, and against closed forms."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import policy_oracle as oracle
from helpers.devices import everywhere
from seqproc.errors import ConfigError, SequenceError
from seqproc.policy import (
    SamplingPolicy,
    log_q,
    rb_entropy,
    score_tokens,
    statistics,
    support,
    token_log_p,
    token_log_q,
)
from seqproc.support import nucleus

INF = float("inf")
SIZES = (1, 2, 3, 5, 8, 16)
TEMPERATURES = (0.5, 0.7, 1.0, 1.3)
TOP_PS = (0.1, 0.5, 0.9, 0.95, 1.0)
POLICIES = [
    SamplingPolicy(temperature=t, top_p=p) for t, p in itertools.product(TEMPERATURES, TOP_PS)
]
GREEDY = SamplingPolicy(do_sample=False)
BOUND = {torch.float32: 1e-6, torch.float64: 1e-12}


def rows_of(size: int) -> torch.Tensor:
    """Logits ``[N, V]``, exact in float32: enumerated, random, peaked, with ties, with −∞."""
    grid = [-1.5, 0.25, 2.0]
    rows = list(itertools.product(grid, repeat=size)) if size <= 3 else []
    draw = np.random.default_rng(size)
    rows += [tuple(draw.normal(0, 1.5, size)) for _ in range(8)]
    rows += [tuple(draw.choice(grid, size)) for _ in range(4)]  # plateaus
    rows.append(tuple(4.0 if i == size // 2 else 0.0 for i in range(size)))
    if size > 1:
        holes = draw.normal(0, 1.5, size)
        holes[: size // 2] = -INF
        rows += [tuple(holes), (-INF,) * (size - 1) + (0.75,)]
    return torch.tensor(rows, dtype=torch.float32)


def eos_of(size: int) -> tuple[int, ...]:
    return tuple({0, size - 1})


def expected(logits: torch.Tensor, policy: SamplingPolicy, eos: tuple[int, ...]) -> list[Any]:
    shape = (policy.temperature, policy.top_p, policy.do_sample)
    return [oracle.step(tuple(row), *shape, eos=eos) for row in logits.double().tolist()]


def gap(got: torch.Tensor, want: list[Any]) -> float:
    """Largest error, absolute below 1 and relative above; infinities must coincide."""
    reference = np.array([float(x) for x in want])
    values = got.detach().double().numpy()
    same = values == reference  # the infinities too
    assert np.isfinite(reference[~same]).all(), (values, reference)
    error = np.abs(values[~same] - reference[~same]) / np.maximum(1, np.abs(reference[~same]))
    return float(error.max(initial=0.0))


def all_gaps(
    logits: torch.Tensor, policy: SamplingPolicy, reference: SamplingPolicy
) -> dict[str, float]:
    """Largest error of everything in `seqproc.policy` under ``policy`` from ``reference``."""
    eos = eos_of(logits.shape[-1])
    steps = expected(logits, reference, eos)
    kept = [list(s.support) for s in steps]
    assert support(logits, policy).tolist() == kept
    stats = statistics(logits, policy, eos)
    worst = {
        name: gap(getattr(stats, name), [getattr(s, name) for s in steps])
        for name in oracle.STATISTICS
    }
    assert set(worst) == {f.name for f in dataclasses.fields(stats)}
    worst["rb_entropy()"] = gap(rb_entropy(logits, policy), [s.rb_entropy for s in steps])
    worst["log_q"] = gap(log_q(logits, policy).flatten(), [x for s in steps for x in s.log_q])
    for token in range(logits.shape[-1]):
        ids = torch.full(logits.shape[:-1], token)
        wanted = {"p": [s.log_p[token] for s in steps], "q": [s.log_q[token] for s in steps]}
        scores = score_tokens(logits, ids, policy, eos)
        for name, got in (
            ("p", token_log_p(logits, ids)),
            ("p", scores.logprobs),
            ("q", token_log_q(logits, ids, policy)),
        ):
            worst[f"token_log_{name}"] = max(
                worst.get(f"token_log_{name}", 0.0), gap(got, wanted[name])
            )
        assert torch.equal(scores.logqs, token_log_q(logits, ids, policy))
    return worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("size", SIZES)
def test_everything_matches_mpmath(size, dtype):
    logits = rows_of(size).to(dtype)
    worst: dict[str, float] = {}
    for policy in [*POLICIES, GREEDY]:
        for name, error in all_gaps(logits, policy, policy).items():
            worst[name] = max(worst.get(name, 0.0), error)
    assert max(worst.values()) <= BOUND[dtype], worst


@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_rows_read_in_blocks_score_as_those_read_together(monkeypatch, top_p):
    """Values and gradients; −∞ is in some of the blocks."""
    logits, policy = rows_of(16), SamplingPolicy(temperature=0.7, top_p=top_p)
    tokens = logits.argmax(-1)

    def read() -> list[torch.Tensor]:
        leaf = logits.clone().requires_grad_()
        scores = score_tokens(leaf, tokens, policy, eos_of(16))
        values = [getattr(scores.stats, f.name) for f in dataclasses.fields(scores.stats)]
        mixed = scores.stats.rb_entropy + scores.logqs + 2 * scores.logprobs
        return [scores.logprobs, scores.logqs, *values, *torch.autograd.grad(mixed.sum(), leaf)]

    together = read()
    monkeypatch.setattr(nucleus, "_BLOCK_ELEMENTS", everywhere(2 * 16))
    assert len(nucleus.blocks(logits)) > 1
    for one, other in zip(together, read(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy", [SamplingPolicy(top_p=0.95), SamplingPolicy()])
@pytest.mark.parametrize("number", [2, 20, 22, 43])
def test_a_row_has_the_same_bits_alone_and_among_others(policy, number):
    logits = 3 * torch.randn(number, 49_152, generator=torch.Generator().manual_seed(0))
    tokens = logits.argmax(-1)
    together = score_tokens(logits, tokens, policy, [0])
    for row in {0, 1, number - 1}:
        one = score_tokens(logits[row : row + 1], tokens[row : row + 1], policy, [0])
        same = together.rows(row, row + 1)
        assert torch.equal(one.logprobs, same.logprobs)
        assert torch.equal(one.logqs, same.logqs)
        for f in dataclasses.fields(one.stats):
            assert torch.equal(getattr(one.stats, f.name), getattr(same.stats, f.name)), f.name


def test_the_sum_of_a_row_alone_is_its_sum_among_others():
    rows = torch.randn(2, 49_152, generator=torch.Generator().manual_seed(0)).exp()
    assert torch.equal(nucleus.sums(rows[:1]), rows.sum(-1)[:1])
    if torch.get_num_threads() > 1:  # several would share it
        assert not torch.equal(rows[:1].sum(-1), rows.sum(-1)[:1])


@pytest.mark.parametrize(
    ("changed", "notices"),
    [
        (SamplingPolicy(temperature=0.70001, top_p=0.9), "rb_entropy"),
        (SamplingPolicy(temperature=0.70001, top_p=0.9), "token_log_q"),
        (SamplingPolicy(temperature=0.70001, top_p=0.9), "logit_var"),
        (SamplingPolicy(temperature=0.70001, top_p=0.9), "cut_margin"),
    ],
)
def test_the_comparison_notices_a_slightly_different_policy(changed, notices):
    logits = rows_of(16)[:4]
    worst = all_gaps(logits, changed, SamplingPolicy(temperature=0.7, top_p=0.9))
    assert worst[notices] > BOUND[torch.float32]


@pytest.mark.slow
def test_the_comparison_notices_another_support():
    with pytest.raises(AssertionError):
        all_gaps(rows_of(16), SamplingPolicy(top_p=0.85), SamplingPolicy(top_p=0.9))


def test_the_comparison_notices_the_wrong_eos_ids():
    logits = rows_of(8)
    wrong = statistics(logits, POLICIES[0], (1,)).eos_prob
    right = [s.eos_prob for s in expected(logits, POLICIES[0], eos_of(8))]
    assert gap(wrong, right) > 1e-2


@pytest.mark.parametrize("policy", [SamplingPolicy(), SamplingPolicy(temperature=0.8, top_p=0.95)])
def test_large_vocabulary_against_extended_precision(policy):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(8, 49_152, generator=generator)
    logits *= torch.tensor(
        [[3.0], [3.0], [1.0], [1.0], [0.1], [0.1], [6.0], [6.0]]
    )  # flat to peaked
    tokens = logits.topk(4, dim=-1).indices[:, 3]
    eos = (int(tokens[0]), 9)

    def steps(temperature: float) -> list[oracle.Step]:
        rows = logits.numpy()
        return [oracle.extended_step(row, temperature, policy.top_p, eos) for row in rows]

    want, other = steps(policy.temperature), steps(1.01 * policy.temperature)
    assert support(logits, policy).tolist() == [list(s.support) for s in want]
    for dtype, bound in [(torch.float32, 5e-6), (torch.float64, 1e-12)]:
        scores = score_tokens(logits.to(dtype), tokens, policy, eos)
        for name in oracle.STATISTICS:
            found = getattr(scores.stats, name)
            assert gap(found, [getattr(s, name) for s in want]) < bound, name
            if policy.truncates and name != "cut_margin":
                assert gap(found, [getattr(s, name) for s in other]) > bound, name
        for name, found in [("log_p", scores.logprobs), ("log_q", scores.logqs)]:
            picked = zip(want, tokens.tolist(), strict=True)
            assert gap(found, [getattr(s, name)[token] for s, token in picked]) < bound


@pytest.mark.parametrize("policy", [POLICIES[8], POLICIES[13]], ids=str)
def test_the_two_oracles_agree(policy):
    for row in rows_of(16)[:8].double():
        exact = expected(row[None], policy, (3,))[0]
        fast = oracle.extended_step(row.numpy(), policy.temperature, policy.top_p, (3,))
        assert exact.support == fast.support
        for name in ("log_p", "log_q"):
            found = [float(x) for x in getattr(fast, name)]
            assert found == pytest.approx([float(x) for x in getattr(exact, name)], rel=1e-14)
        for name in oracle.STATISTICS:
            want = float(getattr(exact, name))
            assert float(getattr(fast, name)) == pytest.approx(want, rel=1e-14, abs=1e-15)


# Ties, plateaus and degenerate rows, against closed forms.


@pytest.mark.parametrize("size", [2, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_rows_cut_exactly_at_the_threshold(size, dtype):
    """k/V mass lies before token k: it is kept iff k/V < top_p, exactly, smaller ids first."""
    for k in range(1, size + 1):
        kept = support(torch.full((size,), 0.3, dtype=dtype), SamplingPolicy(top_p=k / size))
        assert kept.tolist() == [Fraction(i, size) < Fraction(k, size) for i in range(size)]
        stats = statistics(torch.full((size,), 0.3, dtype=dtype), SamplingPolicy(top_p=k / size))
        assert float(stats.rb_entropy) == pytest.approx(math.log(k), abs=1e-6)
        assert float(stats.head_mass) == pytest.approx(k / size, abs=1e-7)
        assert float(stats.margin) == 0
        assert float(stats.cut_margin) == (INF if k == size else 0)
        more = support(torch.zeros(size), SamplingPolicy(top_p=min(1.0, k / size + 1e-9)))
        assert int(more.sum()) == min(size, k + 1)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.25, 1), (0.5, 1), (0.500001, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.88, 4), (1.0, 4)],
)
def test_dyadic_masses_cut_exactly_at_the_threshold(top_p, kept):
    """Masses 1/2, 1/4, 1/8, 1/8: the token that reaches top_p is the last one kept."""
    masses = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64)
    order = [1, 3, 0, 2]
    found = support(masses.log(), SamplingPolicy(top_p=top_p))
    assert [i for i in order if found[i]] == order[:kept]
    head = sum(float(masses[i]) for i in order[:kept])
    values = log_q(masses.log(), SamplingPolicy(top_p=top_p))
    for i in order[:kept]:
        assert float(values[i]) == pytest.approx(math.log(float(masses[i]) / head), abs=1e-15)
    assert all(float(values[i]) == -INF for i in order[kept:])


def test_a_plateau_at_the_threshold_keeps_smaller_ids():
    row = torch.tensor([0.0, 2.0, 1.0, 1.0, 3.0, 1.0])
    for top_p, keeps in [(0.8, {4, 1, 2}), (0.85, {4, 1, 2, 3}), (0.95, {4, 1, 2, 3, 5})]:
        kept = support(row, SamplingPolicy(top_p=top_p))
        assert set(kept.nonzero().flatten().tolist()) == keeps
        moved = support(row.flip(0), SamplingPolicy(top_p=top_p))
        if keeps != {4, 1, 2, 3, 5}:  # a cut inside the plateau goes by id, not by place in memory
            assert not torch.equal(moved.flip(0), kept)


def test_a_long_plateau_keeps_smaller_ids():
    """2,048 equal tokens: sorts of long rows keep equal values in order only when asked to."""
    kept = support(torch.zeros(2048), SamplingPolicy(top_p=0.25))
    assert kept.tolist() == [i < 512 for i in range(2048)]
    careless = torch.zeros(2048, dtype=torch.float64).sort(descending=True, stable=False).indices
    assert careless[:512].tolist() != list(range(512))


def test_impossible_tokens_stay_outside_however_the_masses_round():
    """A sum of masses that rounds to less than top_p must not let a token of logit −∞ in."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 300, generator=generator, dtype=torch.float64)
    logits[:, ::3] = -INF
    largest = math.nextafter(1.0, 0.0)
    rounded = logits.sort(descending=True).values.softmax(-1).cumsum(-1)[:, -1]
    assert bool((rounded < largest).any())
    assert torch.equal(support(logits, SamplingPolicy(top_p=largest)), logits > -INF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("policy", [SamplingPolicy(), SamplingPolicy(top_p=0.9), GREEDY])
def test_a_gap_of_ten_thousand(policy, dtype):
    row = torch.tensor([0.0, 1e4, -INF], dtype=dtype)
    stats = statistics(row, policy, (1,))
    values = log_q(row, policy).tolist()
    assert values[1] == 0
    assert values[2] == -INF
    assert values[0] == (-INF if policy.truncates else -1e4)
    assert float(stats.rb_entropy) == 0
    assert (float(stats.head_mass), float(stats.tail_mass)) == (1, 0)
    assert float(stats.margin) == (0 if policy.truncates else 1e4)
    assert float(stats.eos_prob) == 1
    assert float(stats.cut_margin) == (1e4 if policy.truncates else INF)
    assert not any(getattr(stats, f.name).isnan().any() for f in dataclasses.fields(stats))


@pytest.mark.parametrize("policy", [SamplingPolicy(), SamplingPolicy(top_p=0.5), GREEDY])
@pytest.mark.parametrize("size", [1, 4])
def test_one_possible_token_is_certain(policy, size):
    row = torch.full((size,), -INF)
    row[size - 1] = -3.25
    stats = statistics(row, policy, (size - 1,))
    assert support(row, policy).tolist() == [False] * (size - 1) + [True]
    assert float(rb_entropy(row, policy)) == 0
    assert float(token_log_q(row, torch.tensor(size - 1), policy)) == 0
    assert float(token_log_p(row, torch.tensor(size - 1))) == 0
    assert float(stats.eff_support) == float(stats.top1_prob) == float(stats.eos_prob) == 1
    assert float(stats.cut_margin) == INF


def test_greedy_takes_the_first_of_equal_maxima():
    rows = torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0], [0.0, 1.0, 3.0]])
    assert support(rows, GREEDY).float().argmax(-1).tolist() == [1, 0, 2]
    assert support(rows, GREEDY).sum(-1).tolist() == [1, 1, 1]
    assert statistics(rows, GREEDY).rb_entropy.tolist() == [0, 0, 0]
    assert token_log_q(rows, torch.tensor([1, 0, 0]), GREEDY).tolist() == [0, 0, -INF]
    assert statistics(rows, GREEDY).cut_margin.tolist() == [0, 0, 2]


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_greedy_ignores_temperature_and_top_p_but_scales_its_logits(temperature):
    rows = rows_of(8)
    plain = support(rows, SamplingPolicy(temperature=temperature, top_p=0.2, do_sample=False))
    assert torch.equal(plain, support(rows, GREEDY))


# Dtypes and shapes.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_upcast_before_anything_is_computed(dtype):
    logits = rows_of(8).to(dtype)
    policy = SamplingPolicy(temperature=0.7, top_p=0.9)
    assert max(all_gaps(logits, policy, policy).values()) <= BOUND[torch.float32]
    assert statistics(logits, policy).rb_entropy.dtype == torch.float32
    assert log_q(logits, policy).dtype == torch.float32
    rough = torch.distributions.Categorical(logits=logits / 0.7).entropy()  # in half precision
    exact = [s.rb_entropy for s in expected(logits, SamplingPolicy(temperature=0.7), ())]
    assert gap(rough, exact) > 1e-4  # what not upcasting would cost


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_support_does_not_depend_on_the_dtype_of_the_statistics(policy):
    logits = torch.randn(64, 257, generator=torch.Generator().manual_seed(3))
    logits[::3] = logits[::3].round()  # plateaus
    assert torch.equal(support(logits, policy), support(logits.double(), policy))
    exact = logits.to(torch.bfloat16)
    for wider in (torch.float32, torch.float64):
        assert torch.equal(support(exact, policy), support(exact.to(wider), policy))
    assert torch.equal(log_q(logits, policy).isneginf(), log_q(logits.double(), policy).isneginf())


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("policy", [SamplingPolicy(top_p=0.8, temperature=0.9), GREEDY])
def test_any_leading_shape_gives_what_its_rows_give(shape, policy):
    logits = torch.randn(*shape, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens = torch.zeros(shape, dtype=torch.int64) + 2
    scores = score_tokens(logits, tokens, policy, (0, 4))
    assert scores.logprobs.shape == scores.logqs.shape == torch.Size(shape)
    rows = [
        score_tokens(row, torch.tensor(2), policy, (0, 4)) for row in logits.reshape(-1, 5).unbind()
    ]
    for field in dataclasses.fields(scores.stats):
        whole = getattr(scores.stats, field.name)
        assert whole.shape == torch.Size(shape)
        apart = [getattr(r.stats, field.name).item() for r in rows]
        assert whole.flatten().tolist() == pytest.approx(apart, abs=1e-14)
    assert scores.logqs.flatten().tolist() == pytest.approx([r.logqs.item() for r in rows])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: support(x, SamplingPolicy()),
        lambda x: log_q(x, SamplingPolicy()),
        lambda x: rb_entropy(x, SamplingPolicy()),
        lambda x: statistics(x, SamplingPolicy()),
        lambda x: token_log_p(x, torch.tensor(0)),
        lambda x: token_log_q(x, torch.tensor(0), GREEDY),
    ],
)
def test_integer_logits_are_refused(call):
    with pytest.raises(SequenceError, match=r"floating tensor, got torch\.int64"):
        call(torch.tensor([1, 2, 3]))
    call(torch.tensor([1.0, 2.0, 3.0]))


def test_eos_prob_is_none_without_ids_and_zero_outside_the_support():
    row = torch.tensor([5.0, 0.0, 1.0])
    assert statistics(row, SamplingPolicy()).eos_prob is None
    assert float(statistics(row, SamplingPolicy(top_p=0.5), (1, 2)).eos_prob) == 0
    assert float(statistics(row, SamplingPolicy(), (1, 2)).eos_prob) > 0


def test_map_reaches_every_tensor():
    scores = score_tokens(torch.randn(2, 4), torch.tensor([0, 1]), SamplingPolicy())
    doubled = scores.map(lambda t: t.double())
    assert doubled.logprobs.dtype == doubled.logqs.dtype == torch.float64
    present = [getattr(doubled.stats, f.name) for f in dataclasses.fields(doubled.stats)]
    assert {t.dtype for t in present if t is not None} == {torch.float64}
    assert doubled.stats.eos_prob is None


# The policy's own checks.


@pytest.mark.parametrize("value", [0, -1.0, 1e-40, 9e-7, 1.1e6, INF, -INF, float("nan")])
def test_temperature_must_lie_where_float32_divides_by_it(value):
    with pytest.raises(
        ConfigError, match=r"temperature must lie in \[1e-06, 1e\+06\], got .*greedy"
    ):
        SamplingPolicy(temperature=value)


@pytest.mark.parametrize("value", [0, -0.1, 1.0000001, INF, float("nan")])
def test_top_p_must_lie_in_the_unit_interval(value):
    with pytest.raises(ConfigError, match=r"top_p must lie in \(0, 1\], got"):
        SamplingPolicy(top_p=value)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", ["1", None, True, [1.0]])
def test_values_that_are_not_numbers_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be a number, got .*{type(value).__name__}"):
        SamplingPolicy(**{name: value})


def test_a_policy_is_frozen_keyword_only_and_hashable():
    policy = SamplingPolicy(temperature=1, top_p=1)
    assert {policy: 1}[SamplingPolicy()] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.top_p = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        SamplingPolicy(0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", ["false", "yes", 1, None, np.bool_(True)])
def test_whether_to_sample_is_true_or_false(value):
    with pytest.raises(ConfigError, match="do_sample must be True or False"):
        SamplingPolicy(do_sample=value)


def test_numpys_numbers_are_numbers():
    numpys: Any = {"temperature": np.int64(1), "top_p": np.float32(0.5)}
    policy = SamplingPolicy(**numpys)
    assert policy == SamplingPolicy(temperature=1, top_p=0.5)
    assert type(policy.top_p) is float


# Properties that hold for every row.

finite = st.floats(-12, 12, width=32)
rows = st.lists(finite, min_size=1, max_size=24)
policies = st.builds(
    SamplingPolicy,
    temperature=st.floats(0.2, 3),
    top_p=st.one_of(st.floats(0.01, 0.999), st.just(1.0)),
    do_sample=st.sampled_from([True, True, True, False]),
)
checked = settings(max_examples=100, deadline=None, derandomize=True)


@checked
@given(rows, policies)
def test_masses_and_entropies_stay_in_their_ranges(row, policy):
    logits = torch.tensor(row, dtype=torch.float64)
    stats = statistics(logits, policy)
    size = int(support(logits, policy).sum())
    assert size >= 1
    assert float(log_q(logits, policy).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert -1e-14 <= float(stats.rb_entropy) <= math.log(size) + 1e-12
    assert float(stats.head_mass + stats.tail_mass) == pytest.approx(1, abs=1e-12)
    assert 1 / size - 1e-12 <= float(stats.collision) <= 1 + 1e-12
    assert float(stats.renyi2) <= float(stats.rb_entropy) + 1e-12
    assert float(stats.margin) >= 0
    assert float(stats.cut_margin) >= 0


@checked
@given(rows, st.floats(0.01, 0.999), st.floats(0.01, 0.999))
def test_the_support_grows_with_top_p(row, first, second):
    logits = torch.tensor(row, dtype=torch.float64)
    small, large = (
        support(logits, SamplingPolicy(top_p=p)) for p in (min(first, second), max(first, second))
    )
    assert not bool((small & ~large).any())


@checked
@given(st.lists(finite, min_size=2, max_size=24, unique=True), policies, st.randoms())
def test_permuting_distinct_logits_permutes_everything(row, policy, random):
    logits = torch.tensor(row, dtype=torch.float64)
    order = list(range(len(row)))
    random.shuffle(order)
    shuffled = logits[order]
    scaled = (logits / policy.temperature).tolist()
    assume(len(set(scaled)) == len(scaled))
    assert torch.equal(support(shuffled, policy), support(logits, policy)[order])
    assert log_q(shuffled, policy).tolist() == pytest.approx(
        log_q(logits, policy)[order].tolist(), abs=1e-12
    )
    for name in ("rb_entropy", "head_mass", "margin", "logit_var", "cut_margin"):
        got, want = (getattr(statistics(x, policy), name).item() for x in (shuffled, logits))
        assert got == pytest.approx(want, abs=1e-10)


@checked
@given(rows, policies, st.integers(-64, 64))
def test_a_common_shift_changes_only_the_logit_mean(row, policy, shift):
    logits = torch.tensor([round(x * 2**10) / 2**10 for x in row], dtype=torch.float64)
    before, after = (statistics(x, policy) for x in (logits, logits + shift))
    if not torch.equal(support(logits, policy), support(logits + shift, policy)):
        # Only a mass equal to top_p within rounding can be decided differently.
        mass = np.cumsum(np.sort(np.exp(logits.numpy() / policy.temperature))[::-1])
        assert np.abs(mass / mass[-1] - policy.top_p).min() < 1e-13
        return
    for field in dataclasses.fields(before):
        if field.name in ("logit_mean", "eos_prob"):
            continue
        got, want = getattr(after, field.name).item(), getattr(before, field.name).item()
        assert got == pytest.approx(want, rel=1e-10, abs=1e-10)
    moved = float(after.logit_mean - before.logit_mean)
    assert moved == pytest.approx(shift / policy.temperature, abs=1e-10)


@checked
@given(rows, policies)
def test_temperature_only_scales_the_logits(row, policy):
    logits = torch.tensor(row, dtype=torch.float64)
    unit = dataclasses.replace(policy, temperature=1.0)
    assert torch.equal(support(logits, policy), support(logits / policy.temperature, unit))
    for call in (log_q, rb_entropy):
        scaled = call(logits / policy.temperature, unit)
        torch.testing.assert_close(call(logits, policy), scaled, rtol=1e-12, atol=1e-13)
    if not policy.truncates and len(set(row)) > 1 and abs(policy.temperature - 1) > 0.1:
        assert not torch.equal(log_q(logits, policy), log_q(logits, unit))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"do_sample": False}])
@pytest.mark.parametrize("row", [[1.0, math.nan, 0.0], [-math.inf] * 3, [0.0, math.inf, 0.0]])
def test_logits_that_are_no_numbers_have_no_scores(options, row):
    """Never a wrong number, and never −∞, which would say that the token cannot be drawn."""
    logits = torch.tensor([row, [1.0, 2.0, 0.0]])
    scores = score_tokens(logits, torch.tensor([0, 1]), SamplingPolicy(**options))
    for found in (scores.logqs, scores.logprobs, scores.stats.rb_entropy):
        assert found[0].isnan()
        assert found[1].isfinite()
