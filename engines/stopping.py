"""The end of a response: the one definition, which every engine uses.

A response ends at its first EOS token, or at the token that completes a stop string, whichever
comes first (EOS, when one token does both), or at the length limit. The ending token is part of
it. Stop strings are looked for in the text that the tokens add to their prompt, with special
tokens left in, so that it does not matter how a stop string tokenises, nor whether it is or holds
a special token, nor whether the token that completes it carries text beyond it.

`finish` decides for a whole response; `StopWatcher` tells an engine that decodes token by token
when to stop, from the last few tokens alone. Knows a tokenizer's `decode`; no engine and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from seqproc.engines.base import Request, StoppingRule
from seqproc.engines.gumbel import is_seed
from seqproc.errors import EngineError
from seqproc.models.tokenization import Tokenizer
from seqproc.types import FinishReason

_BROKEN = "\ufffd"  # what decoders write for bytes that are no whole character


def finish(
    token_ids: Sequence[int], tokenizer: Tokenizer, stopping: StoppingRule
) -> tuple[tuple[int, ...], str, FinishReason]:
    """Cut what an engine sampled where the response ends.

    Args:
        token_ids: at least up to the end of the response; what follows is dropped.
        tokenizer: decodes them.
        stopping: the rule.

    Returns:
        The response's token ids; its text, special tokens stripped and the stop string kept; and
        why it ended.

    Raises:
        EngineError: when none of the rule's reasons applies: the engine ended it too early.
    """
    ids = list(token_ids[: stopping.max_new_tokens])
    eos_end = next((n for n, token in enumerate(ids, 1) if token in stopping.eos_token_ids), None)
    stop_end = _stop_end(ids[:eos_end], tokenizer, stopping.stop)
    reason: FinishReason
    if stop_end is not None and (eos_end is None or stop_end < eos_end):
        ids, reason = ids[:stop_end], "stop"
    elif eos_end is not None:
        ids, reason = ids[:eos_end], "eos"
    elif len(ids) == stopping.max_new_tokens:
        reason = "length"
    else:
        raise EngineError(
            f"a response ended without a reason after {len(ids)} of {stopping.max_new_tokens} "
            f"tokens: no EOS id of {list(stopping.eos_token_ids)} and no stop string of "
            f"{list(stopping.stop)} in it. This is a fault of the engine"
        )
    stop = stopping.stop if reason == "stop" else ()
    return tuple(ids), _text_with_stop(ids, tokenizer, stop), reason


def _text_with_stop(ids: list[int], tokenizer: Tokenizer, stop: Sequence[str]) -> str:
    """The text, special tokens stripped but for those of the stop string that it ends with."""
    text = response_text(tokenizer, ids)
    if not stop or any(string in text for string in stop):
        return text
    whole = _ResponseText(tokenizer)
    for start in range(len(ids) - 1, -1, -1):
        ending = whole(ids[start:])
        if any(string in ending for string in stop):
            end = ids[start:]
            holds_special = response_text(tokenizer, end) != _decode(tokenizer, end)
            return response_text(tokenizer, ids[:start]) + ending if holds_special else text
    return text


def _stop_end(ids: list[int], tokenizer: Tokenizer, stop: Sequence[str]) -> int | None:
    """Number of tokens up to the one that completes a stop string; None when there is none.

    The text of a prefix grows with the prefix, so the first that holds a stop string is found by
    bisection. (Some decoders take back a character of byte tokens while the next is incomplete;
    the occurrence found may then be a later one, in tokens that went on after the first.)
    """
    if not stop or not ids:
        return None
    text = _ResponseText(tokenizer)

    def holds_stop(num_tokens: int) -> bool:
        prefix = text(ids[:num_tokens])
        return any(string in prefix for string in stop)

    without, upto = len(ids) - 1, len(ids)
    if not holds_stop(upto):
        return None
    if holds_stop(without):  # rare: an engine stops at the token that completes it
        without, upto = 0, without
    while upto - without > 1:
        middle = (without + upto) // 2
        without, upto = (without, middle) if holds_stop(middle) else (middle, upto)
    return upto


class StopWatcher:
    """Watches the tokens of one response for a stop string, as they come.

    Each token costs one decode of a short window, however long the response is. What it reports
    is confirmed on the whole text, so that `finish` always agrees.

    Args:
        tokenizer: decodes the tokens.
        stop: the stop strings, none of them empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._text = _ResponseText(tokenizer)
        self._ids: list[int] = []
        self._start = 0  # of the window
        # An incomplete UTF-8 character at the end decodes to up to three replacement characters.
        self._overlap = max((len(string) for string in self._stop), default=0) + 3
        self._limit = 2 * self._overlap

    def push(self, token_id: int) -> bool:
        """Take the next token; whether a stop string is now complete."""
        self._ids.append(token_id)
        if not self._stop:
            return False
        if self._holds_stop(self._ids[self._start :]):
            return self._holds_stop(self._ids)
        if len(self._ids) - self._start > self._limit:
            self._shorten()
        return False

    def _holds_stop(self, ids: list[int]) -> bool:
        text = self._text(ids)
        return any(string in text for string in self._stop)

    def _shorten(self) -> None:
        """Drop half of the window, if the rest is whole characters and enough of them."""
        start = (self._start + len(self._ids)) // 2
        while start > self._start and _BROKEN in self._text(self._ids[start : start + 1]):
            start -= 1
        if len(self._text(self._ids[start:])) >= self._overlap:
            self._start = start
        else:
            self._limit *= 2


class _ResponseText:
    """The text that tokens add to what stands before them, special tokens included.

    Decoding the tokens alone would not do: some decoders drop a space at the start of a text.
    So they are decoded behind a letter, whose text is taken off again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor = list(tokenizer.encode("a", add_special_tokens=False))
        self._anchor_text = _decode(tokenizer, self._anchor)

    def __call__(self, ids: list[int]) -> str:
        text = _decode(self._tokenizer, self._anchor + ids)
        if text.startswith(self._anchor_text):
            return text[len(self._anchor_text) :]
        return _decode(self._tokenizer, ids)


def response_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of a response: special tokens stripped, a stop string kept."""
    return _decode(tokenizer, ids, skip_special_tokens=True)


def _decode(tokenizer: Tokenizer, ids: list[int], *, skip_special_tokens: bool = False) -> str:
    # The clean-up some tokenizers ask for rewrites text (" ." becomes "."): never wanted here.
    text: str = tokenizer.decode(
        ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    return text


def check_request(request: Request, stopping: StoppingRule, max_context: int | None) -> None:
    """Refuse a request that an engine could not carry through.

    Raises:
        EngineError: when the prompt is empty, when prompt and response together exceed the
            context, or when the seed is not an unsigned 64-bit integer.
    """
    num_prompt, num_new = len(request.prompt_ids), stopping.max_new_tokens
    if not num_prompt:
        raise EngineError(f"request {request.index} has an empty prompt; give at least one token")
    if max_context is not None and num_prompt + num_new > max_context:
        raise EngineError(
            f"request {request.index} does not fit: {num_prompt} prompt tokens and "
            f"max_new_tokens={num_new} exceed the context of {max_context} tokens; shorten the "
            "prompt or lower max_new_tokens"
        )
    if not is_seed(request.seed):
        raise EngineError(
            f"request {request.index} has the seed {request.seed!r}; a seed is an integer in "
            "[0, 2**64)"
        )
