"""The columns of a run's rows: one row per draw, a type and a unit for each column.

Format version 1. A column that is added, dropped or changes its meaning makes a new version.
"""

from __future__ import annotations

import pyarrow as pa

FORMAT_VERSION = 1

_TOKENS = pa.list_(pa.int32())
_PER_TOKEN = pa.list_(pa.float64())


def _column(name: str, kind: pa.DataType, unit: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


_IDENTITY = [
    _column("draw", pa.int64(), "index of the draw in its run, from 0"),
    _column("prompt_index", pa.int64(), "position in the dataset's split, or in the scored source"),
    _column("seed", pa.uint64(), "sampling seed; null: not sampled by seqproc", nullable=True),
]

_TEXTS = [
    _column("prompt_text", pa.string(), "the prompt as the model read it, templates included"),
    _column("question", pa.string(), "the question without a template"),
    _column("answer", pa.string(), "gold answer; null: there is none", nullable=True),
    _column("prompt_ids", _TOKENS, "token ids, without padding"),
    _column("response_ids", _TOKENS, "token ids of the generated region, EOS or stop included"),
    _column("response_text", pa.string(), "decoded response_ids, special tokens stripped"),
    _column("finish_reason", pa.string(), "eos, stop or length; null: unknown", nullable=True),
    _column("gen_len", pa.int32(), "tokens in response_ids"),
]

_TOKEN_SCORES = [
    _column("logprobs", _PER_TOKEN, "nats per token: log p, raw model, T = 1, untruncated"),
    _column("logqs", _PER_TOKEN, "nats per token: log q of the policy; -inf outside its support"),
    _column("rb_entropies", _PER_TOKEN, "nats per token: H(q)"),
    _column("head_mass", _PER_TOKEN, "probability: mass of the policy's support under softmax(a)"),
    _column(
        "engine_logqs",
        _PER_TOKEN,
        "nats per token: log q as the engine reported it; null: it did not",
        nullable=True,
    ),
]

_SEQUENCE_SCORES = [
    _column("sequence_logprob", pa.float64(), "nats: sum of logprobs"),
    _column("sequence_logq", pa.float64(), "nats: sum of logqs; -inf when a token is outside"),
    _column("out_of_support", pa.int32(), "tokens with logq = -inf"),
    _column(
        "reward",
        pa.float64(),
        "by the manifest's reward; of tag_pref 0 where there is no gold answer",
    ),
]

# The fields of `seqproc.types.SequenceDiagnostics` but T, which is gen_len.
_AGGREGATES = [
    _column("rb_entropy_sum", pa.float64(), "nats: sum of rb_entropies"),
    _column("rb_entropy_mean", pa.float64(), "nats per token"),
    _column("rb_entropy_max", pa.float64(), "nats: largest of a token"),
    _column("rb_entropy_min", pa.float64(), "nats: smallest of a token"),
    _column("early_rb_entropy_mean", pa.float64(), "nats per token, first 16 tokens"),
    _column("late_rb_entropy_mean", pa.float64(), "nats per token, after the first 16"),
    _column("naive_surprisal_sum", pa.float64(), "nats: sum of -logprobs"),
    _column("naive_surprisal_mean", pa.float64(), "nats per token"),
    _column("margin_mean", pa.float64(), "scaled logits: mean of top-1 minus top-2"),
    _column("margin_sum", pa.float64(), "scaled logits: sum of top-1 minus top-2"),
    _column("top1_prob_mean", pa.float64(), "probability: mean of max q"),
    _column("collision_mean", pa.float64(), "probability: mean of the sum of q squared"),
    _column("renyi2_mean", pa.float64(), "nats: mean of -log sum of q squared"),
    _column("eff_support_mean", pa.float64(), "tokens: mean of exp H(q)"),
    _column("eos_prob_mean", pa.float64(), "probability: mean of q(EOS)", nullable=True),
]

AGGREGATES = tuple(field.name for field in _AGGREGATES)

ROWS_SCHEMA = pa.schema(
    [*_IDENTITY, *_TEXTS, *_TOKEN_SCORES, *_SEQUENCE_SCORES, *_AGGREGATES],
    metadata={"seqproc.format_version": str(FORMAT_VERSION)},
)
