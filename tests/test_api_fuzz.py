"""Every argument of every public call replaced by what it must not be, and by what it may be.

A call gives numbers that are right or raises an error of the library's own. An error of Python's,
torch's or numpy's from somewhere inside names neither the argument nor the mend.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from helpers.tiny import byte_tokenizer, random_model
from seqproc import estimators, policy, prompts, rewards, scorers
from seqproc.config import (
    GenerationConfig,
    NoGradProfile,
    OverrideProfile,
    PrecisionConfig,
    WithGradProfile,
    load_config,
    torch_dtype,
)
from seqproc.errors import SeqprocError
from seqproc.models import load_model, resolve_device, resolve_dtype, resolve_model
from seqproc.policy import SamplingPolicy
from seqproc.runs import RunSpec, open_run, verify_run
from seqproc.scorers import TeacherForcingScorer, TokenSequence
from seqproc.types import BatchedSequences

V = 300
LOGITS = torch.randn(4, V, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([1, 5, 299, 0])
POLICY = SamplingPolicy(temperature=0.8, top_p=0.9)

JUNK: dict[str, Any] = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "3": 3,
    "1e30": 10**30,
    "2.5": 2.5,
    "nan": math.nan,
    "inf": math.inf,
    "text": "x",
    "no text": "",
    "a surrogate": "a\ud800",
    "bytes": b"x",
    "[]": [],
    "[None]": [None],
    "[[]]": [[]],
    "{}": {},
    "{x: 1}": {"x": 1},
    "{1: 2}": {1: 2},
    "()": (),
    "a set": {1},
    "an object": object(),
    "a class": dict,
    "a function": len,
    "a generator": (i for i in range(2)),
    "an empty tensor": torch.zeros(0),
    "a scalar tensor": torch.tensor(1.0),
    "integers": torch.tensor([1, 2]),
    "a tensor of NaN": torch.full((4, V), math.nan),
    "four dimensions": torch.zeros(2, 2, 2, 2),
    "complex": torch.zeros(4, V, dtype=torch.complex64),
    "meta": torch.zeros(4, V, device="meta"),
    "sparse": torch.eye(4).to_sparse(),
    "booleans": torch.zeros(4, V, dtype=torch.bool),
    "an array": np.zeros((2, 3)),
    "an array of text": np.array(["a"]),
    "a module": torch.nn.Linear(2, 2),
}


@functools.cache
def model() -> Any:
    fields = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    return random_model(LlamaConfig, byte_tokenizer(), 0, fields)


@functools.cache
def scorer() -> TeacherForcingScorer:
    return TeacherForcingScorer(model(), [0])


def sequences() -> list[TokenSequence]:
    return [
        TokenSequence(prompt_ids=torch.tensor([5, 6, 7]), response_ids=torch.tensor(ids))
        for ids in ([8, 9], [10], [])
    ]


def direction() -> dict[str, torch.Tensor]:
    return {"lm_head.weight": torch.ones(V, 16)}


LOG_WEIGHTS, VALUES = np.array([0.1, -0.2, 0.3]), np.array([1.0, 2.0, 0.5])

# A call by name: what is called, and arguments with which it is right.
Call = tuple[Callable[..., Any], dict[str, Any]]
CALLS: dict[str, Call] = {
    "SamplingPolicy": (SamplingPolicy, {"temperature": 1.0, "top_p": 1.0, "do_sample": True}),
    "support": (policy.support, {"logits": LOGITS, "policy": POLICY}),
    "log_q": (policy.log_q, {"logits": LOGITS, "policy": POLICY}),
    "token_log_q": (
        policy.token_log_q,
        {"logits": LOGITS, "tokens": TOKENS, "policy": POLICY},
    ),
    "token_log_p": (policy.token_log_p, {"logits": LOGITS, "tokens": TOKENS}),
    "rb_entropy": (policy.rb_entropy, {"logits": LOGITS, "policy": POLICY}),
    "statistics": (
        policy.statistics,
        {"logits": LOGITS, "policy": POLICY, "eos_token_ids": (0,)},
    ),
    "score_tokens": (
        policy.score_tokens,
        {"logits": LOGITS, "tokens": TOKENS, "policy": POLICY, "eos_token_ids": (0,)},
    ),
    "measure": (
        scorers.measure,
        {"logits": LOGITS, "tokens": TOKENS, "policy": POLICY, "eos_token_ids": (0,)},
    ),
    "DistributionDiagnostics": (
        scorers.DistributionDiagnostics,
        {"top_p": 0.9, "temperature": 1.0, "eos_token_id": 0, "do_sample": True},
    ),
    "compute_from_logits": (
        lambda **given: scorers.DistributionDiagnostics().compute_from_logits(**given),
        {"gen_logits": LOGITS, "realized_tokens": TOKENS},
    ),
    "TokenSequence": (
        TokenSequence,
        {"prompt_ids": torch.tensor([1]), "response_ids": torch.tensor([2])},
    ),
    "Limits": (
        scorers.Limits,
        {"tokens": 8, "sequences": 2, "share_prompts": True, "forward_cost": 64},
    ),
    "plan": (
        scorers.plan,
        {"sequences": sequences(), "limits": scorers.Limits(tokens=64), "indices": [0, 1]},
    ),
    "token_sequences": (
        scorers.token_sequences,
        {
            "batch": BatchedSequences(
                sequences=torch.ones(1, 1, 3).long(),
                prompt_lens=[1],
                gen_lens=[[2]],
                attention_masks=torch.ones(1, 1, 3).long(),
            )
        },
    ),
    "TeacherForcingScorer": (
        TeacherForcingScorer,
        {"model": model(), "eos_token_ids": [0], "precision": PrecisionConfig()},
    ),
    "examine": (scorers.examine, {"model": model()}),
    "score": (
        lambda **given: scorer().score(**given),
        {
            "sequences": sequences(),
            "policy": POLICY,
            "batch_size": 2,
            "token_budget": 64,
            "share_prompts": True,
            "overrides": [None],
            "buffers": None,
        },
    ),
    "score_with_grad": (
        lambda **given: scorer().score_with_grad(**given),
        {
            "sequences": sequences(),
            "policy": POLICY,
            "batch_size": 2,
            "token_budget": 64,
            "share_prompts": True,
        },
    ),
    "logits": (
        lambda **given: scorer().logits(**given),
        {
            "input_ids": torch.tensor([[1, 2]]),
            "attention_mask": torch.ones(1, 2).long(),
            "mapping": None,
        },
    ),
    "jvp": (
        functools.partial(scorers.jvp, scorer()),
        {"sequences": sequences(), "policy": POLICY, "direction": direction(), "batch_size": 2},
    ),
    "hvp": (
        functools.partial(scorers.hvp, scorer()),
        {
            "sequences": sequences()[:2],
            "policy": POLICY,
            "direction": direction(),
            "objective": lambda scores: sum(s.stats.rb_entropy.sum() for s in scores),
        },
    ),
    "sequence_gradients": (
        lambda **given: list(scorers.sequence_gradients(scorer(), **given)),
        {"sequences": sequences(), "policy": POLICY, "of": "logprob"},
    ),
    "weighted_gradient": (
        functools.partial(scorers.weighted_gradient, scorer()),
        {"sequences": sequences(), "policy": POLICY, "weights": torch.ones(3), "of": "logprob"},
    ),
    "projected_gradients": (
        functools.partial(scorers.projected_gradients, scorer()),
        {
            "sequences": sequences(),
            "policy": POLICY,
            "directions": [direction()],
            "of": "entropy",
        },
    ),
    "gradient_gram": (
        functools.partial(scorers.gradient_gram, scorer()),
        {"sequences": sequences(), "policy": POLICY, "of": "logprob", "held": 2},
    ),
    "build_params_override": (
        functools.partial(scorers.build_params_override, model()),
        {"direction": direction(), "eta": 0.1, "dtype": torch.float64, "allow_frozen": False},
    ),
    "build_state_override": (
        functools.partial(scorers.build_state_override, model()),
        {
            "direction": direction(),
            "eta": 0.1,
            "param_dtype": None,
            "include_buffers": True,
            "buffer_dtype": None,
        },
    ),
    "GenerationConfig": (
        GenerationConfig,
        {
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": 4,
            "do_sample": True,
            "num_return_sequences": 2,
            "gen_batch_size": 2,
            "tf_batch_size": 2,
            "rb_requires_grad": False,
            "stop": ("x",),
            "tf_token_budget": 8,
            "tf_share_prompts": True,
            "reward_weights": (0.5, 0.5),
        },
    ),
    "OverrideProfile": (
        OverrideProfile,
        {"autocast": False, "dtype": "float32", "cast_params": True},
    ),
    "NoGradProfile": (
        NoGradProfile,
        {"autocast": False, "dtype": "float32", "cast_logits_fp32": True},
    ),
    "WithGradProfile": (
        WithGradProfile,
        {"autocast": False, "dtype": "float32", "cast_logits_fp32": True},
    ),
    "PrecisionConfig": (
        PrecisionConfig,
        {
            "func_override": OverrideProfile(),
            "tf_nograd": NoGradProfile(),
            "tf_withgrad": WithGradProfile(),
            "allow_tf32": False,
            "matmul_precision": "high",
            "entropy_fp64": False,
        },
    ),
    "load_config": (load_config, {"config": {"generation": {}}}),
    "torch_dtype": (torch_dtype, {"name": "float32"}),
    "resolve_dtype": (resolve_dtype, {"dtype": "float32"}),
    "resolve_device": (resolve_device, {"device": "cpu"}),
    "resolve_model": (resolve_model, {"name_or_path": "smollm2-135m"}),
    "load_model": (
        lambda **given: load_model("smollm2-135", **given),
        {
            "dtype": "float32",
            "device": "cpu",
            "adapter": None,
            "trust_remote_code": False,
            "revision": None,
        },
    ),
    "sequence_log_weights": (
        estimators.sequence_log_weights,
        {"logqs_to": [-VALUES, -VALUES], "logqs_from": [-VALUES, -VALUES]},
    ),
    "effective_sample_size": (estimators.effective_sample_size, {"log_weights": LOG_WEIGHTS}),
    "mean": (
        estimators.mean,
        {"values": VALUES, "log_weights": LOG_WEIGHTS, "clusters": [0, 0, 1]},
    ),
    "tag_pref": (
        rewards.tag_pref,
        {"text": "<answer>5</answer>", "gold": "5", "weights": (0.5, 0.5)},
    ),
    "tag_pref_batch": (rewards.tag_pref_batch, {"texts": ["a"], "gold": "5"}),
    "answers_equal": (rewards.answers_equal, {"gold": "5", "answer": "5"}),
    "PromptEntry": (
        prompts.PromptEntry,
        {"text": "a", "question": "a", "answer": "5", "meta": {}},
    ),
    "load_prompts": (
        prompts.load_prompts,
        {"spec": "arithmetic", "split": "train", "data_dir": None},
    ),
    "choose_prompts": (
        prompts.choose_prompts,
        {"pool": prompts.load_prompts("arithmetic"), "num_prompts": 2, "seed": 0},
    ),
    "draw_seed": (prompts.draw_seed, {"run_seed": 1, "index": 2}),
    "replacement_indices": (
        prompts.replacement_indices,
        {"seed": 1, "pool_size": 4, "total": 3},
    ),
    "RunSpec": (RunSpec, {"dataset": "arithmetic", "draws": 4, "seed": 0, "split": "train"}),
    "open_run": (open_run, {"path": "no such folder"}),
    "verify_run": (verify_run, {"path": "no such folder"}),
}

CASES = [
    (name, argument, junk)
    for name, (_, given) in CALLS.items()
    for argument in given
    for junk in JUNK
]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def verdict(name: str, argument: str, junk: str) -> str:
    """The word "answered" or "refused", or the error that is not the library's own."""
    function, given = CALLS[name]
    try:
        with quietly():
            function(**{**given, argument: JUNK[junk]})
    except SeqprocError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "answered"


@pytest.mark.parametrize("name", CALLS)
def test_no_error_from_inside(name: str) -> None:
    found = {
        (argument, junk): verdict(name, argument, junk)
        for case, argument, junk in CASES
        if case == name
    }
    assert {k: v for k, v in found.items() if v not in ("answered", "refused")} == {}


def test_the_calls_are_right_as_they_are() -> None:
    for name, (function, given) in CALLS.items():
        if name not in ("load_model", "open_run", "verify_run"):
            with quietly():
                function(**given)


def test_there_are_a_thousand_cases() -> None:
    assert len(CASES) >= 1000
    assert Counter(verdict(*case) for case in CASES[:200])["refused"] > 100
