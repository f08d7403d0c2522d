"""One sequence as a notebook shows it: its tokens, coloured by surprisal, with their numbers.

Static HTML: it asks for no script, no network and no style sheet. Its texts are untrusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seqproc._util.printing import Facts, Printed, Words, quoted
from seqproc._util.snippets import safe
from seqproc.errors import RunError, SequenceError
from seqproc.report import colours
from seqproc.report.text import number

if TYPE_CHECKING:
    from seqproc.models.tokenization import Tokenizer
    from seqproc.report.tokens.pieces import Piece
    from seqproc.runs import Run
    from seqproc.types import BatchedSequences, LogprobResults

Floats = npt.NDArray[np.float64]

MOST_TOKENS = 4096  # shown of a sequence
_LONGEST_TOKEN = 200  # characters of a token
_LONGEST_TEXT = 60  # characters of the response, where it is printed
_PART = "⟨part⟩"  # of a character that a later token completes
_SCORES = {  # fields of `LogprobResults`, by the names of a run's columns
    "logprobs": "logprobs",
    "logqs": "token_logqs",
    "rb_entropies": "rb_entropies",
    "head_mass": "head_mass",
    "engine_logqs": "engine_logqs",
}

_BOX = "padding:1px 2px;border-radius:3px;white-space:pre-wrap;unicode-bidi:isolate"
_LINES = "font-family:monospace;line-height:1.7;overflow-wrap:anywhere;margin:4px 0"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ShownSequence(Printed):
    """A response whose tokens a notebook colours by −log p, or by −log q where there is no log p.

    Made by `show_sequence` and `show_draw`. ``T`` tokens.
    """

    ids: tuple[int, ...]  # [T]
    pieces: tuple[Piece, ...] | None  # [T] text of each token; None: no tokenizer that fits
    columns: Mapping[str, Floats]  # numbers of each token, [T], by the names of a run's columns
    text: str | None = None  # of the response, where it is known
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if self.pieces is not None:
            lengths["pieces"] = len(self.pieces)
        for name, length in lengths.items():
            if length != len(self.ids):
                raise SequenceError(
                    f"{name} must have one entry for each of {len(self.ids)} tokens, got {length}"
                )

    def _facts(self) -> Facts:
        logprobs = self.columns.get("logprobs")
        return {
            "tokens": len(self.ids),
            "finish_reason": self.finish_reason,
            "sum_of_logprobs": None if logprobs is None else float(sum(logprobs.tolist())),
            "numbers": Words(" + ".join(self.columns)),
            "text": None if self.text is None else Words(quoted(self.text, _LONGEST_TEXT)),
        }

    def _pieces(self) -> Iterable[str]:
        """The legend, and the tokens."""
        surprisals = self._surprisals()
        if surprisals is not None:
            yield _legend(self._coloured_by)
        tokens = "".join(self._token(n, surprisals) for n in range(self._num_shown))
        left_out = len(self.ids) - self._num_shown
        note = f"<p>… {left_out:,} more tokens are left out</p>" if left_out else ""
        yield f'<div dir="ltr" style="{_LINES}">{tokens}</div>{note}'

    @property
    def _num_shown(self) -> int:
        return min(len(self.ids), MOST_TOKENS)

    @property
    def _coloured_by(self) -> str:
        return "logprobs" if "logprobs" in self.columns else "logqs"

    def _surprisals(self) -> Floats | None:
        values = self.columns.get(self._coloured_by)
        return None if values is None else -values

    def _token(self, n: int, surprisals: Floats | None) -> str:
        """A token, as a span whose title has its numbers."""
        nats = None if surprisals is None else float(surprisals[n])
        paper, ink = colours.of_surprisal(nats)
        style = f"background-color:{paper};color:{ink};{_BOX}"
        title = safe("; ".join(self._numbers(n)))
        return f'<span data-token style="{style}" title="{title}">{self._text(n)}</span>'

    def _numbers(self, n: int) -> list[str]:
        values = [f"{name} {number(float(v[n]))}" for name, v in self.columns.items()]
        return [f"token {n + 1} of {len(self.ids)}", f"id {self.ids[n]}", *values]

    def _text(self, n: int) -> str:
        """What the token writes, as HTML; line breaks and tabs are told and kept."""
        piece = f"#{self.ids[n]}" if self.pieces is None else self.pieces[n]
        if piece is None:
            return _PART
        return safe(piece, _LONGEST_TOKEN).replace("\n", "⏎\n").replace("\t", "⇥\t") or "⟨empty⟩"


def show_sequence(
    sequences: BatchedSequences,
    results: LogprobResults | None = None,
    b: int = 0,
    g: int = 0,
    *,
    tokenizer: Tokenizer | None = None,
) -> ShownSequence:
    """A response of a batch, with the scores that there are of it.

    Args:
        sequences: the batch.
        results: its scores; None shows the tokens alone.
        b: which prompt.
        g: which response to it.
        tokenizer: the model's; without it token ids stand for the texts.

    Raises:
        SequenceError: there is no such response, or it has other scores than tokens.
    """
    if not (0 <= b < sequences.num_prompts and 0 <= g < sequences.num_responses):
        raise SequenceError(
            f"the batch has {sequences.num_prompts} prompts with {sequences.num_responses} "
            f"responses each, and none at b = {b}, g = {g}; both count from 0"
        )
    ids = tuple(sequences.response_ids(b, g).tolist())
    text = sequences.responses_text[b][g] if sequences.responses_text else None
    reasons = sequences.finish_reasons
    return ShownSequence(
        ids=ids,
        pieces=_cut_up(tokenizer, ids, text),
        columns={} if results is None else _columns_of(results, b, g),
        text=text,
        finish_reason=None if reasons is None else reasons[b][g],
    )


def show_draw(run: Run, draw: int, *, tokenizer: Tokenizer | None = None) -> ShownSequence:
    """A draw of a run, with all numbers that the run keeps of its tokens.

    Args:
        run: as `seqproc.runs.open_run` opens it.
        draw: its index.
        tokenizer: the model's; None for the one that the manifest names, where it is on this
            machine. Without it token ids stand for the texts.

    Raises:
        RunError: the draw has no row, or a row that cannot be read.
    """
    from seqproc.report.tokens.pieces import local_tokenizer
    from seqproc.runs.format.schema import TOKEN_COLUMNS

    row = run.row(draw)
    names = [name for name in (*TOKEN_COLUMNS, "engine_logqs") if row.get(name) is not None]
    ids, text = tuple(row["response_ids"]), row["response_text"]
    try:
        return ShownSequence(
            ids=ids,
            pieces=_cut_up(local_tokenizer(run) if tokenizer is None else tokenizer, ids, text),
            columns={name: np.array(row[name], dtype=np.float64) for name in names},
            text=text,
            finish_reason=row["finish_reason"],
        )
    except SequenceError as error:
        raise RunError(f"draw {draw} of the run in {run.url}: {error}") from error


def _cut_up(
    tokenizer: Tokenizer | None, ids: tuple[int, ...], text: str | None
) -> tuple[Piece, ...] | None:
    if tokenizer is None:
        return None
    from seqproc.report.tokens.pieces import Pieces

    found = Pieces(tokenizer).of(ids, text)
    return None if found is None else tuple(found)


def _columns_of(results: LogprobResults, b: int, g: int) -> dict[str, Floats]:
    """The numbers per token of one response, by the names of a run's columns."""
    nested = {name: getattr(results, field) for name, field in _SCORES.items()}
    found = {name: rows[b][g] for name, rows in nested.items() if rows is not None}
    arrays = {name: _array(values) for name, values in found.items() if values is not None}
    # Without compute_rb the entropies are empty.
    return {name: v for name, v in arrays.items() if len(v) or not len(arrays["logprobs"])}


def _array(values: Any) -> Floats:
    """A tensor, also one of a graph or on a device, or an array, in float64."""
    there = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(there, dtype=np.float64)


def _legend(name: str) -> str:
    words = "−log p" if name == "logprobs" else "−log q"
    boxes = "".join(
        f'<span style="background-color:{paper};color:{ink};{_BOX}">{safe(told)}</span> '
        for told, (paper, ink) in colours.legend()
    )
    return f'<p style="margin:4px 0">{words}, nats per token: {boxes}</p>'
