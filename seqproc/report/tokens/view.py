"""`token_view`: markup, style, script and data, to be put into a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from seqproc.models.tokenization import Tokenizer, special_token_ids
from seqproc.report.tokens.packing import as_shown, block
from seqproc.report.tokens.pieces import Pieces, local_tokenizer
from seqproc.report.tokens.rows import Draws, Tokens, chunks, tokens_of
from seqproc.report.tokens.slopes import Slope, slopes_of
from seqproc.report.tokens.statistics import DELTA, ENGINE, Scales, statistics_of

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs import Run

_SCRIPTS = ("blocks", "text", "colours", "rows", "parts", "reader", "list", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A part of a page. Texts of the run are in ``data`` alone, where they are inert."""

    html: str  # a section, the same for every run
    css: str  # a style sheet; reads --bg, --fg, --muted, --line, --accent and --bad of the page
    script: str  # JavaScript without network or eval; starts when the page is read
    data: str  # elements that hold the run's numbers and texts; anywhere in the body


def token_view(
    run: Run,
    limit: int | None = None,
    tokenizer: Tokenizer | Literal["local"] | None = "local",
) -> TokenView:
    """The sequences of a run as text, each token coloured by a number of it.

    Args:
        run: complete or not; draws in quarantine are listed.
        limit: only so many rows, the first ones; None: all.
        tokenizer: makes texts of tokens. "local": the one of the run's model, where it is on this
            machine's disk. Without one, or with one that makes other texts than the run has, a
            response is shown as a whole, and its tokens by their ids.

    Raises:
        ConfigError: ``limit`` is no count.
        RunError: a part of the run cannot be read.
    """
    from seqproc.config import require_count

    if limit is not None:
        limit = require_count("limit", limit)
    if tokenizer == "local":
        tokenizer = local_tokenizer(run)
    script = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    return TokenView(
        html=_read("tokens.html"),
        css=_read("tokens.css"),
        script=f'(() => {{\n"use strict";\n{script}}})();\n',
        data="".join(_blocks(run, limit, tokenizer)),
    )


def _blocks(run: Run, limit: int | None, tokenizer: Tokenizer | None) -> Iterator[str]:
    """The data of each chunk of draws, and at last what is read at the start."""
    draws, scales, names = Draws(), Scales(), dict[str, str]()
    cutter = None if tokenizer is None else Pieces(tokenizer)
    slopes = slopes_of(run)
    reported = False
    for number, batch in enumerate(chunks(run, limit)):
        tokens = _with_slopes(tokens_of(batch), batch, slopes)
        draws.add(batch)
        scales.add(tokens.columns)
        reported |= len(tokens.missing.get(ENGINE, [])) < len(batch)
        names |= _units(batch, tokens) | {one.column: one.unit for one in slopes}
        yield _texts(number, batch)
        yield _numbers(number, batch, tokens, cutter)
    if not reported:
        names = {name: unit for name, unit in names.items() if name not in (ENGINE, DELTA)}
    special = [] if tokenizer is None else sorted(special_token_ids(tokenizer))
    header = draws.header(run) | {
        "token_columns": [{"name": name, "unit": unit} for name, unit in names.items()],
        "statistics": scales.describe(statistics_of(names)),
        "special": special,
        "texts_of_tokens": tokenizer is not None,
    }
    yield block("draws", header, draws.arrays())


def _with_slopes(tokens: Tokens, batch: pa.RecordBatch, slopes: list[Slope]) -> Tokens:
    for slope in slopes:
        values, missing = slope.of(batch)
        tokens.columns[slope.column] = values
        if missing:
            tokens.missing[slope.column] = missing
    return tokens


def _units(batch: pa.RecordBatch, tokens: Tokens) -> dict[str, str]:
    """The columns of tokens, each with its unit and meaning."""
    fields = {field.name: (field.metadata or {}).get(b"unit", b"") for field in batch.schema}
    units = {name: fields.get(name, b"").decode() for name in tokens.columns}
    return units | ({DELTA: "nats per token: engine_logqs − logqs"} if DELTA in units else {})


def _texts(number: int, batch: pa.RecordBatch) -> str:
    """The texts of a chunk: what is searched."""
    names = {"prompt": "prompt_text", "response": "response_text", "answer": "answer"}
    texts = {short: batch[name].to_pylist() for short, name in names.items()}
    return block(f"texts-{number}", texts, {})


def _numbers(number: int, batch: pa.RecordBatch, tokens: Tokens, cutter: Pieces | None) -> str:
    """The tokens of a chunk: ids, numbers and pieces of text."""
    header: dict[str, Any] = {
        "lengths": tokens.lengths,
        "missing": tokens.missing,
        "pieces": [None] * len(batch) if cutter is None else _cut(batch, cutter),
    }
    shown = {name: as_shown(values) for name, values in tokens.columns.items()}
    return block(f"numbers-{number}", header, {"response_ids": tokens.ids, **shown})


def _cut(batch: pa.RecordBatch, cutter: Pieces) -> list[Any]:
    """The pieces of each response; None where the tokenizer makes another text of it."""
    columns = ("response_ids", "response_text", "finish_reason")
    rows = zip(*(batch[name].to_pylist() for name in columns), strict=True)
    # Of a stop string the run's text has the special tokens, too: only the others are compared.
    return [cutter.of(ids, None if reason == "stop" else text) for ids, text, reason in rows]


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")
