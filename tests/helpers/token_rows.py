"""Rows of a run without a model: made up, or given; and a page that holds their token view."""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from seqproc.report.tokens import TokenView, token_view
from seqproc.runs.format.quarantine import Failed
from seqproc.runs.format.schema import TOKEN_COLUMNS, rows_schema

COLUMNS = TOKEN_COLUMNS
WORDS = ("the", " answer", " is", " 4", "2", ",\n", " because", " 数", "学", " apples", " of", "\t")
SIZES = {"f4": 4, "f8": 8, "u4": 4}
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


class Rows:
    """What the token view asks of a run, over a table in memory."""

    def __init__(self, table: pa.Table, quarantined: Sequence[Failed] = ()) -> None:
        self.table = table
        self.num_rows = len(table)
        self.quarantined = list(quarantined)
        self.score_sets: list[str] = []
        self.manifest = SimpleNamespace(model={"name": "none such"})

    def batches(self, *, batch_size: int) -> Iterator[pa.RecordBatch]:
        yield from self.table.combine_chunks().to_batches(max_chunksize=batch_size)


class WordTokenizer:
    """Its token n is the word n."""

    all_special_ids = (0,)

    def __init__(self, words: Sequence[str]) -> None:
        self.words = ["<eos>", *words]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        return "".join(self.words[i] for i in ids if i or not skip_special_tokens)


def made_up(
    draws: int, length: float, seed: int = 0, columns: Sequence[str] = COLUMNS
) -> tuple[Rows, WordTokenizer]:
    """Draws of random words: lengths are geometric about a mean, statistics are random."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1 / length, draws), int(4 * length))
    rows = [_row(rng, n, int(size), columns) for n, size in enumerate(lengths)]
    table = pa.Table.from_pylist(rows, schema=rows_schema(tuple(columns)))
    return Rows(table), WordTokenizer(WORDS)


def _row(rng: np.random.Generator, draw: int, length: int, columns: Sequence[str]) -> Any:
    ids = [*rng.integers(1, len(WORDS) + 1, length - 1).tolist(), 0]
    row = given(draw, WordTokenizer(WORDS).decode(ids, skip_special_tokens=True), ids, columns)
    for name in columns:
        sign = -1 if name in ("logprobs", "logqs") else 1
        row[name] = (sign * rng.gamma(0.5, size=length)).tolist()
    row["engine_logqs"] = (np.array(row["logqs"]) + 1e-5 * rng.normal(size=length)).tolist()
    row["reward"] = float(rng.integers(0, 2))
    row["sequence_logprob"] = float(np.sum(row["logprobs"]))
    row["rb_entropy_mean"] = float(np.mean(row["rb_entropies"]))
    return row


def given(draw: int, text: str, ids: Sequence[int], columns: Sequence[str] = COLUMNS) -> Any:
    """A row of one text; each number of it is its step."""
    schema = rows_schema(tuple(columns))
    row: dict[str, Any] = {field.name: 0 for field in schema}
    for field in schema:
        if pa.types.is_list(field.type):
            row[field.name] = [float(n) for n in range(len(ids))]
    return row | {
        "draw": draw,
        "seed": 2**63 + draw,
        "prompt_text": f"Question {draw}: how many?",
        "question": "how many?",
        "answer": "42",
        "prompt_ids": [1, 2],
        "response_ids": list(ids),
        "response_text": text,
        "finish_reason": "eos",
        "stop_string": None,
        "gen_len": len(ids),
    }


def write_page(path: Path, run: Any, tokenizer: Any = None, limit: int | None = None) -> TokenView:
    """A page that holds the token view of a run, under a strict content security policy."""
    view = token_view(run, limit, tokenizer)
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tokens</title>
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; --bg: #fff; --fg: #1a1d21; --muted: #59616b; --line: #c9ced6;
  --accent: #1f5fb0; --bad: #b3261e; }}
:root[data-theme="dark"] {{ --bg: #14171c; --fg: #e6e8eb; --muted: #a3acb8; --line: #3a414b;
  --accent: #7fb2f5; --bad: #ff8a80; }}
body {{ background: var(--bg); color: var(--fg); }}
{view.css}</style></head>
<body><main><h1>A run</h1>{view.html}</main>
{view.data}<script>{view.script}</script></body></html>""",
        "utf-8",
    )
    return view


def read(data: str, name: str) -> tuple[Any, dict[str, Any]]:
    """What a block holds, read without the code that wrote it."""
    found = re.search(rf'<script [^>]*id="seqproc-tokens-{name}">([^<]*)</script>', data)
    assert found is not None
    content = gzip.decompress(base64.b64decode(found[1]))
    (length,) = struct.unpack("<I", content[:4])
    header, at, arrays = json.loads(content[4 : 4 + length]), 4 + length, {}
    for one in header["arrays"]:
        kind, count = one["kind"], one["count"]
        arrays[one["name"]] = np.frombuffer(content, f"<{kind}", count, at)
        at += SIZES[kind] * count
    assert at == len(content)
    return header, arrays
