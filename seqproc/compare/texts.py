"""The tokens of two responses as they are shown: what is shared, and where they part.

Without the model's tokenizer on this machine's disk, tokens are shown by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seqproc.compare.outliers import Outlier, Response
from seqproc.report.text import number
from seqproc.report.tokens.pieces import Piece, Pieces

_MAX_TOKENS = 512  # of a response that are shown
_MAX_SHARED = 256  # of them before the parting, where all do not fit
_PART_OF_A_CHARACTER = "⟨…⟩"  # a token whose bytes belong to a character that a later one completes


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of a response."""

    text: str
    title: str  # its step, id and log p
    kind: str  # "shared", "parting" or "after"; a class of the page's style sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A response, token by token."""

    tokens: list[Token]
    ending: str  # how it ended, and what of it is not shown
    has_texts: bool  # whether tokens are shown by their texts


def shown_tokens(one: Response, pair: Outlier, cutter: Pieces | None) -> Shown:
    """A response of a pair as its tokens.

    Args:
        one: the response, of A or of B.
        pair: which pair it is of.
        cutter: makes texts of its tokens; without it, or where it makes another text of the whole,
            ids are shown.
    """
    texts = None if cutter is None else cutter.of(one.ids, one.text)
    parting = len(one.ids) if pair.parting is None else pair.parting
    fits = pair.parting is None or parting < _MAX_TOKENS - _MAX_SHARED
    start = 0 if fits else parting - _MAX_SHARED
    steps = range(start, min(start + _MAX_TOKENS, len(one.ids)))
    tokens = [
        Token(
            text=f"{one.ids[step]} " if texts is None else _text(texts[step]),
            title=_title(step, one.ids[step], one.logprobs),
            kind="shared" if step < parting else "parting" if step == parting else "after",
        )
        for step in steps
    ]
    shown = "" if len(steps) == len(one.ids) else f", shown are {len(steps):,} from step {start}"
    ended_first = pair.parting is not None and pair.parting >= len(one.ids)
    first = ", where the other one goes on" if ended_first else ""
    return Shown(
        tokens=tokens,
        ending=f"{len(one.ids):,} tokens{shown}; ended by: {one.finish_reason}{first}",
        has_texts=texts is not None,
    )


def _title(step: int, token: int, logprobs: Sequence[float]) -> str:
    logprob = f", log p {number(logprobs[step])}" if step < len(logprobs) else ""
    return f"step {step}, id {token}{logprob}"


def _text(piece: Piece) -> str:
    return _PART_OF_A_CHARACTER if piece is None else piece
