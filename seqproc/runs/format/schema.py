"""The columns of a run: those of its samples, and those of each set of scores; units for all.

Format version 2. A column that is added, dropped or changes its meaning makes a new version.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seqproc._util.optional import require_package
from seqproc.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

    ROWS_SCHEMA: pa.Schema
    """The columns of a run's rows, with the per-token columns that are kept by default."""

FORMAT_VERSION = 2

_TOKENS = "int32[]"
_PER_TOKEN = "float64[]"


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    kind: str  # Arrow's name of a type; with [] a list of it
    unit: str  # and the meaning
    nullable: bool = field(default=False, kw_only=True)


_DRAW = _Column("draw", "int64", "index of the draw in its run, from 0")

_SAMPLES = [
    _DRAW,
    _Column("prompt_index", "int64", "position in the dataset's split, or in the scored source"),
    _Column("seed", "uint64", "sampling seed; null: not sampled by seqproc", nullable=True),
    _Column("prompt_text", "string", "the prompt as the model read it, templates included"),
    _Column("question", "string", "the question without a template"),
    _Column("answer", "string", "gold answer; null: there is none", nullable=True),
    _Column("prompt_ids", _TOKENS, "token ids, without padding"),
    _Column("response_ids", _TOKENS, "token ids of the generated region, EOS or stop included"),
    _Column("response_text", "string", "decoded response_ids, special tokens stripped"),
    _Column("finish_reason", "string", "eos, stop or length; null: unknown", nullable=True),
    _Column("stop_string", "string", "what ended the response; null: no stop", nullable=True),
    _Column("gen_len", "int32", "tokens in response_ids"),
    _Column(
        "engine_logqs",
        _PER_TOKEN,
        "nats per token: log q as the engine reported it; null: it did not",
        nullable=True,
    ),
    _Column(
        "reward",
        "float64",
        "by the manifest's reward; of tag_pref 0 where there is no gold answer",
    ),
]

_TOKEN_SCORES = [
    _Column("logprobs", _PER_TOKEN, "nats per token: log p, raw model, T = 1, untruncated"),
    _Column("logqs", _PER_TOKEN, "nats per token: log q of the policy; -inf outside its support"),
    _Column("rb_entropies", _PER_TOKEN, "nats per token: H(q)"),
    _Column("head_mass", _PER_TOKEN, "probability: mass of the policy's support under softmax(a)"),
    _Column("tail_mass", _PER_TOKEN, "probability: mass outside the support"),
    _Column("two_point_entropy", _PER_TOKEN, "nats per token: entropy of (head, tail) mass"),
    _Column("top1_prob", _PER_TOKEN, "probability: max q"),
    _Column("margin", _PER_TOKEN, "scaled logits: top-1 minus top-2 in the support"),
    _Column("collision", _PER_TOKEN, "probability: sum of q squared"),
    _Column("renyi2", _PER_TOKEN, "nats per token: -log sum of q squared"),
    _Column("eff_support", _PER_TOKEN, "tokens: exp H(q)"),
    _Column("logit_mean", _PER_TOKEN, "scaled logits: mean under q"),
    _Column("logit_var", _PER_TOKEN, "scaled logits squared: variance under q"),
    _Column("cut_margin", _PER_TOKEN, "scaled logits: last kept minus first dropped; inf: none"),
    _Column("eos_prob", _PER_TOKEN, "probability: q(EOS); null: no EOS ids", nullable=True),
]

TOKEN_COLUMNS = tuple(column.name for column in _TOKEN_SCORES)
"""What can be kept for each token."""

DEFAULT_TOKEN_COLUMNS = ("logprobs", "logqs", "rb_entropies", "head_mass")
"""What is kept for each token where nothing else is asked for."""

_SUMS = [
    _Column("sequence_logprob", "float64", "nats: sum of log p"),
    _Column("sequence_logq", "float64", "nats: sum of log q; -inf when a token is outside"),
    _Column("inside_logq", "float64", "nats: sum of log q over the tokens inside the support"),
    _Column("out_of_support", "int32", "tokens with log q = -inf"),
]

# The fields of `seqproc.types.SequenceDiagnostics` but T, which is gen_len.
_AGGREGATES = [
    _Column("rb_entropy_sum", "float64", "nats: sum of rb_entropies"),
    _Column("rb_entropy_mean", "float64", "nats per token"),
    _Column("rb_entropy_max", "float64", "nats: largest of a token"),
    _Column("rb_entropy_min", "float64", "nats: smallest of a token"),
    _Column("early_rb_entropy_mean", "float64", "nats per token, first 16 tokens"),
    _Column("late_rb_entropy_mean", "float64", "nats per token, after the first 16"),
    _Column("naive_surprisal_sum", "float64", "nats: sum of -logprobs"),
    _Column("naive_surprisal_mean", "float64", "nats per token"),
    _Column("margin_mean", "float64", "scaled logits: mean of top-1 minus top-2"),
    _Column("margin_sum", "float64", "scaled logits: sum of top-1 minus top-2"),
    _Column("top1_prob_mean", "float64", "probability: mean of max q"),
    _Column("collision_mean", "float64", "probability: mean of the sum of q squared"),
    _Column("renyi2_mean", "float64", "nats: mean of -log sum of q squared"),
    _Column("eff_support_mean", "float64", "tokens: mean of exp H(q)"),
    _Column("eos_prob_mean", "float64", "probability: mean of q(EOS)", nullable=True),
]

AGGREGATES = tuple(column.name for column in _AGGREGATES)


def require_pyarrow() -> None:
    """Refuse to go on without pyarrow.

    Raises:
        MissingDependencyError: it is not installed.
    """
    require_package("pyarrow", extra="runs", purpose="a run on disk")


def check_token_columns(names: object) -> tuple[str, ...]:
    """The per-token columns that a run keeps, in their own order.

    Raises:
        ConfigError: they are no list of names, or one of them is no per-token column.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"token_columns must be a list of names, got {names!r:.60}")
    chosen = list(names)
    for name in chosen:
        if name not in TOKEN_COLUMNS:
            hint = did_you_mean(name, TOKEN_COLUMNS)
            raise ConfigError(
                f"no per-token column is called {name!r}{hint}; they are {', '.join(TOKEN_COLUMNS)}"
            )
    return tuple(name for name in TOKEN_COLUMNS if name in chosen)


@functools.cache
def samples_schema() -> pa.Schema:
    """Columns of samples: what was drawn, and its reward."""
    return _schema(_SAMPLES)


@functools.cache
def scores_schema(token_columns: Sequence[str] = DEFAULT_TOKEN_COLUMNS) -> pa.Schema:
    """Columns of a set of scores: the draw, what was asked for per token, sums and aggregates."""
    tokens = [column for column in _TOKEN_SCORES if column.name in token_columns]
    return _schema([_DRAW, *tokens, *_SUMS, *_AGGREGATES])


@functools.cache
def rows_schema(token_columns: Sequence[str] = DEFAULT_TOKEN_COLUMNS) -> pa.Schema:
    """Columns of samples and their scores beside each other; also to be had as `ROWS_SCHEMA`.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    scores = scores_schema(token_columns)  # refuses to go on without pyarrow
    import pyarrow as pa

    fields = [*samples_schema(), *(f for f in scores if f.name != _DRAW.name)]
    return pa.schema(fields, metadata=scores.metadata)


def _schema(columns: Sequence[_Column]) -> pa.Schema:
    require_pyarrow()
    import pyarrow as pa

    version = {"seqproc.format_version": str(FORMAT_VERSION)}
    return pa.schema([_field(column) for column in columns], metadata=version)


def _field(column: _Column) -> pa.Field:
    import pyarrow as pa

    kind = pa.type_for_alias(column.kind.removesuffix("[]"))
    if column.kind.endswith("[]"):
        kind = pa.list_(kind)
    about = {"unit": column.unit}
    return pa.field(column.name, kind, nullable=column.nullable, metadata=about)


def __getattr__(name: str) -> Any:
    if name == "ROWS_SCHEMA":
        return rows_schema()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
