"""The tokens of two responses as they are shown: what is shared, and where they part.

A token's text is what it adds to the text of those before it. Without the model's tokenizer on
this machine's disk, tokens are shown by their ids.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seqproc.compare.outliers import Outlier, Response
from seqproc.report.text import number

if TYPE_CHECKING:
    from seqproc.compare.sides import Side
    from seqproc.models.tokenization import Tokenizer

logger = logging.getLogger(__name__)

_BROKEN = "\ufffd"  # what decoders write for bytes that are no whole character
_MAX_TOKENS = 512  # of a response that are shown


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


def shown_tokens(one: Response, pair: Outlier, tokenizer: Tokenizer | None) -> Shown:
    """A response of a pair as its tokens.

    Args:
        one: the response, of A or of B.
        pair: which pair it is of.
        tokenizer: of the model that made it; None, or one that makes another text: ids are shown.
    """
    texts = None if tokenizer is None else texts_of(tokenizer, one)
    ids = one.ids[:_MAX_TOKENS]
    parting = len(one.ids) if pair.parting is None else pair.parting
    tokens = [
        Token(
            text=f"{token} " if texts is None else texts[step],
            title=_title(step, token, one.logprobs),
            kind="shared" if step < parting else "parting" if step == parting else "after",
        )
        for step, token in enumerate(ids)
    ]
    left = len(one.ids) - len(ids)
    more = f", and {left:,} more tokens" if left else ""
    ended_first = pair.parting is not None and pair.parting >= len(one.ids)
    first = ", where the other one goes on" if ended_first else ""
    return Shown(
        tokens=tokens,
        ending=f"{len(one.ids):,} tokens{more}; ended by: {one.finish_reason}{first}",
        has_texts=texts is not None,
    )


def _title(step: int, token: int, logprobs: Sequence[float]) -> str:
    logprob = f", log p {number(logprobs[step])}" if step < len(logprobs) else ""
    return f"step {step}, id {token}{logprob}"


def texts_of(tokenizer: Tokenizer, one: Response) -> list[str] | None:
    """The text that each token adds; empty where a later one completes its character.

    None where the tokenizer makes another text of the ids, and so is not the one that made them.
    """
    try:
        if tokenizer.decode(list(one.ids), skip_special_tokens=True) != one.text:
            return None
        found, before = [], ""
        for step in range(min(len(one.ids), _MAX_TOKENS)):
            text = _decode(tokenizer, one.ids[: step + 1])
            is_last = step + 1 == len(one.ids)
            whole = text if is_last else text.rstrip(_BROKEN)
            found.append(whole[len(before) :])
            before = whole if len(whole) > len(before) else before
    except (IndexError, OverflowError, TypeError, ValueError):  # an id that it does not have
        return None
    return found


def local_tokenizer(side: Side) -> Tokenizer | None:
    """The tokenizer of a run's model, from this machine's disk alone; None where it is not here.

    Nothing is downloaded or converted, and no code of a checkpoint is run.
    """
    from transformers import AutoTokenizer

    from seqproc.models.embedded import EMBEDDED_MODELS, embedded_model_dir

    name = str(side.run.manifest.model.get("name", ""))
    if name in EMBEDDED_MODELS:
        name = str(embedded_model_dir(name))
        if not Path(name).is_dir():
            return None
    try:
        loaded: Tokenizer = AutoTokenizer.from_pretrained(
            str(Path(name).expanduser()), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a stranger's folder makes it raise
        logger.info("the page shows token ids: no tokenizer of %r here (%s)", name, error)
        return None
    return loaded


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
