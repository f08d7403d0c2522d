"""Batches that fit: sizes from free memory, halved when it runs out, every sequence done once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.devices import everywhere
from helpers.scorer_helpers import distance, float64_profiles, random_sequences
from seqproc._util.memory import is_out_of_memory
from seqproc.errors import ScoringError
from seqproc.policy import SamplingPolicy
from seqproc.scorers import (
    Batch,
    Limits,
    TeacherForcingScorer,
    TokenSequence,
    budget,
    teacher_forcing,
)
from seqproc.scorers.budget import Schedule, default_tokens, free_memory

CPU = torch.device("cpu")
POLICY = SamplingPolicy(temperature=0.8, top_p=0.95)
TOO_LARGE = 1 << 50  # elements: beyond any address space


def torch_says() -> None:
    torch.empty(TOO_LARGE)


def numpy_says() -> None:
    np.empty(TOO_LARGE)


def python_says() -> None:
    raise MemoryError


def an_accelerator_says() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def an_older_torch_says() -> None:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    )


FAILURES = [torch_says, numpy_says, python_says, an_accelerator_says, an_older_torch_says]


def common_prompts(vocab_size: int = 50) -> list[TokenSequence]:
    """Three prompts with four responses each, an empty one among them, and six of their own."""
    shapes = [*[(9, t) for t in (4, 7, 1, 9)], *[(3, t) for t in (2, 8, 5, 3)]]
    shapes += [(6, 5), (6, 0), (6, 1), (6, 6), (2, 3), (5, 5), (1, 9), (4, 4), (8, 2), (7, 7)]
    drawn = random_sequences(vocab_size, shapes)
    return [
        TokenSequence(
            prompt_ids=drawn[i - i % 4 if i < 12 else i].prompt_ids, response_ids=s.response_ids
        )
        for i, s in enumerate(drawn)
    ]


class Worker:
    """Work that fails, as a machine would, on more tokens than it has room for."""

    def __init__(self, room: int, fail: Callable[[], None] = python_says) -> None:
        self.room, self.fail = room, fail
        self.done: list[int] = []
        self.refused = 0

    def __call__(self, batch: Batch) -> None:
        if batch.num_tokens > self.room:
            self.refused += 1
            self.fail()
        self.done += batch.indices


def exhaust(schedule: Schedule, work: Callable[[Batch], object]) -> list[object]:
    return [result for _, result in schedule.map(work)]


# The schedule.


@pytest.mark.parametrize("fail", FAILURES)
def test_out_of_memory_is_known_from_other_errors(fail):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        fail()
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("fail", FAILURES)
def test_every_sequence_is_done_once_however_memory_runs_out(fail, share, caplog):
    sequences = common_prompts()
    schedule = Schedule(sequences, Limits(tokens=1000, share_prompts=share))
    worker = Worker(30, fail)
    exhaust(schedule, worker)
    assert sorted(worker.done) == [i for i, s in enumerate(sequences) if len(s.response_ids)]
    assert worker.refused > 0
    warnings = [r for r in caplog.records if r.name == "seqproc"]
    assert [r.levelno for r in warnings] == [logging.WARNING] * worker.refused


@pytest.mark.parametrize("share", [True, False])
def test_the_next_run_uses_sizes_that_fit(share):
    sequences = common_prompts()
    schedule = Schedule(sequences, Limits(tokens=1000, share_prompts=share))
    exhaust(schedule, Worker(30))
    again = Worker(30)
    exhaust(schedule, again)
    assert again.refused == 0
    assert sorted(again.done) == [i for i, s in enumerate(sequences) if len(s.response_ids)]
    assert [i for batch in schedule.batches for i in batch.indices] == again.done
    assert schedule.limits.share_prompts is share


def test_limits_are_halved_until_it_fits():
    schedule = Schedule(random_sequences(50, [(4, 5)] * 32), Limits(tokens=256))
    tried = []

    def work(batch: Batch) -> None:
        tried.append(batch.num_tokens)
        if batch.num_tokens > 40:
            raise MemoryError

    exhaust(schedule, work)
    assert tried == [256, 128, 64, *[32] * 8]
    assert schedule.limits.tokens == 32


def test_half_of_what_was_tried_counts_and_not_of_what_was_allowed():
    schedule = Schedule(random_sequences(50, [(4, 5)] * 8), Limits(tokens=10**9, sequences=3))
    exhaust(schedule, Worker(16))
    assert schedule.limits.tokens == 12
    assert schedule.limits.sequences == 3
    assert [len(batch.indices) for batch in schedule.batches] == [1] * 8


def test_what_was_done_before_is_not_done_again():
    """Memory may run out late, when another process has taken it."""
    sequences = random_sequences(50, [(4, 5)] * 12)
    schedule = Schedule(sequences, Limits(tokens=32))
    batches: list[list[int]] = []

    def work(batch: Batch) -> None:
        if len(batches) > 0 and batch.num_tokens > 16:
            raise MemoryError
        batches.append(batch.indices)

    exhaust(schedule, work)
    assert [len(batch) for batch in batches] == [4, 2, 2, 2, 2]
    assert sorted(i for batch in batches for i in batch) == list(range(12))


def test_plenty_of_memory_leaves_the_plan_alone():
    schedule = Schedule(common_prompts(), Limits(tokens=60))
    batches, limits = list(schedule.batches), schedule.limits
    worker = Worker(60)
    exhaust(schedule, worker)
    assert worker.refused == 0
    assert schedule.limits is limits
    assert all(a is b for a, b in zip(schedule.batches, batches, strict=True))


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("memory"), ScoringError("not a number")]
)
def test_other_errors_pass_through(error):
    schedule = Schedule(common_prompts(), Limits(tokens=60))

    def work(batch: Batch) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        exhaust(schedule, work)
    assert raised.value is error
    assert schedule.limits.tokens == 60


def test_a_sequence_that_never_fits_is_named():
    sequences = [*common_prompts(), *random_sequences(50, [(30, 11)])]
    schedule = Schedule(sequences, Limits(tokens=1000))
    worker = Worker(39)
    with pytest.raises(ScoringError, match=r"sequence 18, of 41 tokens, does not fit in memory"):
        exhaust(schedule, worker)
    assert len(worker.done) == len(set(worker.done))
    enough = Worker(40)  # the last token is no input
    exhaust(Schedule(sequences, Limits(tokens=1000)), enough)
    assert 18 in enough.done


def test_one_token_that_does_not_fit_is_told():
    """Prompts of one token in common, responses of one token: a batch of one input."""
    prompt, response = torch.tensor([3]), torch.tensor([5])
    sequences = [TokenSequence(prompt_ids=prompt, response_ids=response)] * 2
    tries = iter(range(100))

    def work(batch: Batch) -> None:
        if next(tries, None) is None:
            raise AssertionError("it was tried a hundred times")
        raise MemoryError

    with pytest.raises(ScoringError, match="does not fit in memory"):
        exhaust(Schedule(sequences, Limits(tokens=1000)), work)


# End to end.


def short_of_memory(model: Any, room: int) -> list[int]:
    """From now on the model's backbone has room for so many tokens; the calls it refused."""
    refused: list[int] = []

    def refuse(_: nn.Module, args: Any, kwargs: Any) -> None:
        tokens = kwargs["input_ids"].numel()
        if tokens > room:
            refused.append(tokens)
            raise torch.OutOfMemoryError(f"no room for {tokens} tokens")

    model.get_decoder().register_forward_pre_hook(refuse, with_kwargs=True)
    return refused


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize(("precision", "bound"), [(None, 2e-5), (float64_profiles(), 1e-11)])
def test_scores_do_not_tell_that_memory_ran_out(family, precision, bound, share, request):
    model = request.getfixturevalue(family)()
    sequences = common_prompts()
    scorer = TeacherForcingScorer(model, precision=precision)
    plenty = scorer.score(sequences, POLICY, token_budget=1000, share_prompts=share)[0]
    told: list[int] = []
    refused = short_of_memory(model, 20)
    short = scorer.score(
        sequences, POLICY, token_budget=1000, share_prompts=share, progress=told.append
    )[0]
    assert distance(plenty, short) < bound
    assert refused
    assert sum(told) == sum(len(s.response_ids) > 0 for s in sequences)


@pytest.mark.parametrize(("precision", "bound"), [(None, 2e-5), (float64_profiles(), 1e-11)])
def test_gradients_do_not_tell_that_memory_ran_out(tiny_llama, precision, bound):
    model = tiny_llama()
    sequences = common_prompts()
    scorer = TeacherForcingScorer(model, precision=precision)

    def graphed() -> tuple[list[Any], torch.Tensor]:
        scores = scorer.score_with_grad(sequences, POLICY, token_budget=1000)
        loss = torch.stack([s.logprobs.sum() + s.stats.rb_entropy.sum() for s in scores]).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return scores, torch.cat([g.flatten() for g in gradients]).double()

    plenty, gradient = graphed()
    refused = short_of_memory(model, 20)
    short, found = graphed()
    assert distance(plenty, short) < bound
    assert refused
    # Parameters are float32, and so are their gradients, whatever is computed on the way.
    assert float((found - gradient).norm()) < 1e-5 * float(gradient.norm())
    assert float((found * 1.0001 - gradient).norm()) > 1e-5 * float(gradient.norm())


def test_a_second_override_starts_with_what_fitted_the_first(tiny_llama):
    model = tiny_llama()
    scorer = TeacherForcingScorer(model)
    refused = short_of_memory(model, 20)
    once = scorer.score(common_prompts(), POLICY, token_budget=1000)
    num_refused = len(refused)
    thrice = scorer.score(common_prompts(), POLICY, token_budget=1000, overrides=[None] * 3)
    assert len(refused) == 2 * num_refused > 0
    assert all(distance(once[0], scores) < 2e-5 for scores in thrice)


def test_a_sequence_too_long_for_the_machine_is_told(tiny_llama):
    model = tiny_llama()
    scorer = TeacherForcingScorer(model)
    short_of_memory(model, 12)
    with pytest.raises(ScoringError, match=r"sequence 3, of 18 tokens, does not fit in memory"):
        scorer.score(common_prompts(), POLICY, share_prompts=False)


# Free memory.


def test_default_tokens_shrink_with_free_memory(monkeypatch, tiny_llama):
    model = tiny_llama()
    found = []
    for free in [1 << 40, 1 << 27, 1 << 25, 1 << 23, 1 << 10, 0]:
        monkeypatch.setattr(budget, "free_memory", lambda device, free=free: free)
        found.append(default_tokens(model, CPU))
    assert found == sorted(found, reverse=True)
    assert found[0] == 4096  # more than this gets no faster
    assert 1 < found[3] < found[2] < 4096
    assert found[-2:] == [1, 1]


def test_default_tokens_shrink_with_the_model(monkeypatch, tiny_llama):
    monkeypatch.setattr(budget, "free_memory", lambda device: 1 << 24)
    small = default_tokens(tiny_llama(), CPU)
    assert default_tokens(tiny_llama(hidden_size=64), CPU) == small // 2
    assert default_tokens(tiny_llama().double(), CPU) == small // 2
    assert 1 <= default_tokens(nn.Linear(2, 2), CPU) < small  # of unknown width
    assert default_tokens(nn.Identity(), CPU) >= 1


@pytest.mark.parametrize(("fitting", "rows"), [(1e9, 48), (40, 32), (9, 9), (0, 1)])
def test_a_chunk_of_the_head_shrinks_with_free_memory(monkeypatch, tiny_llama, fitting, rows):
    """And nothing else changes: a long response still fits where its hidden states do."""
    scorer = TeacherForcingScorer(tiny_llama().double())
    vocabulary = scorer.parts.vocab_size
    sequences = random_sequences(vocabulary, [(4, 60)])
    (expected,) = scorer.score(sequences, POLICY, token_budget=64)
    free = int(fitting * vocabulary * budget._LIVE_BYTES_PER_LOGIT * 4) + 4
    monkeypatch.setattr(teacher_forcing, "_HEAD_ELEMENTS", everywhere(48 * vocabulary))
    monkeypatch.setattr(budget, "free_memory", lambda device: free)
    assert scorer._head_rows(False) == rows
    (found,) = scorer.score(sequences, POLICY, token_budget=64)
    assert distance(found, expected) < 1e-12


def test_free_memory_is_plausible():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory(CPU) <= physical


def test_free_memory_without_proc(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(budget, "open", missing, raising=False)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory(CPU) <= physical


def test_free_memory_of_a_device_is_asked_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1234, 5678))
    assert free_memory(torch.device("cuda", 0)) == 1234
    assert default_tokens(torch.nn.Module(), torch.device("cuda")) == 1
