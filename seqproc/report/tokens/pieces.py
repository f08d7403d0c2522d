"""The text of each token of a response: what it adds to the text of those before it.

Decoding a token alone would not do: the bytes of one character may be spread over several tokens,
and some decoders drop the space that a text begins with. Where a character is spread, its text is
that of its last token, and the others have none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqproc.engines.stopping import response_text
from seqproc.models.embedded import EMBEDDED_MODELS, embedded_model_dir
from seqproc.models.tokenization import Tokenizer

if TYPE_CHECKING:
    from seqproc.runs import Run

logger = logging.getLogger(__name__)

_BROKEN = "�"  # what decoders write for bytes that are no whole character

Piece = str | None
"""The text of a token; None: its bytes belong to a character that a later token completes."""


class Pieces:
    """Cuts the texts of responses into those of their tokens.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}  # texts of tokens that were decoded alone

    def of(self, ids: Sequence[int], text: str | None = None) -> list[Piece] | None:
        """A piece for each token; they add up to the text of all, special tokens included.

        Args:
            ids: of a whole response.
            text: of the response as the run has it, special tokens stripped; None: not known.

        Returns:
            The pieces; None where the tokenizer does not make the text of the ids, and so is not
            the one that made them.
        """
        listed = list(ids)
        try:
            if text is not None and response_text(self._tokenizer, listed) != text:
                return None
            return self._together(listed) or pieces(self._tokenizer, listed)
        except (IndexError, OverflowError, TypeError, ValueError):  # an id that it does not have
            return None

    def _together(self, ids: list[int]) -> list[Piece] | None:
        """The texts of the tokens alone, where they add up to the text of all."""
        for token in set(ids) - self._alone.keys():
            self._alone[token] = _decode(self._tokenizer, [token])
        found: list[Piece] = [self._alone[token] for token in ids]
        whole = "".join(text or "" for text in found)
        return found if _BROKEN not in whole and whole == _decode(self._tokenizer, ids) else None


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[Piece]:
    """The same, token after token: the text of some tokens with the next, less that without it.

    A window of a few tokens is decoded each time: those of the last whole characters, and those
    that wait for the rest of theirs.
    """
    found: list[Piece] = []
    before, waiting = 0, 0  # where the last whole characters begin, and those that are not whole
    for n in range(len(ids)):
        known = _decode(tokenizer, ids[before:waiting])
        added = _decode(tokenizer, ids[before : n + 1])[len(known) :]
        if added.endswith(_BROKEN):
            found.append(None)
            continue
        held = _decode(tokenizer, ids[before:n])[len(known) :]
        if n > waiting and held and added.startswith(held):  # bytes of no character stand before
            found[-1], added = held, added[len(held) :]
        found.append(added)
        before, waiting = waiting, n + 1
    if waiting < len(ids):
        found[-1] = _decode(tokenizer, ids[before:])[len(_decode(tokenizer, ids[before:waiting])) :]
    return found


def local_tokenizer(run: Run) -> Tokenizer | None:
    """The tokenizer of the model that a run's manifest names, from this machine's disk alone.

    Nothing is downloaded or converted, and no code of a checkpoint is run. None where it is not
    here, or cannot be loaded.
    """
    name = str(run.manifest.model.get("name", ""))
    if name in EMBEDDED_MODELS:
        name = str(embedded_model_dir(name))
        if not Path(name).is_dir():
            return None
    from transformers import AutoTokenizer

    try:
        loaded: Tokenizer = AutoTokenizer.from_pretrained(
            str(Path(name).expanduser()), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a stranger's folder makes it raise
        logger.info("the page shows token ids: no tokenizer of %r here (%s)", name, error)
        return None
    return loaded


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
