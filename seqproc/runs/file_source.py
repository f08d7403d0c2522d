"""Sequences from a file of one JSON object a line.

An object has ``prompt`` or ``prompt_ids`` and ``response`` or ``response_ids`` (ids win where both
are there), and optionally ``question`` and ``answer``; other keys are left alone. Texts are
tokenised on their own, the prompt with the tokenizer's special tokens and the response without, so
that no token spans the two. Token ids are the record: a response's text is decoded from its ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqproc.errors import DatasetError, PromptError, SequenceError
from seqproc.models.tokenization import as_chat, encode_prompts
from seqproc.prompts import PromptEntry
from seqproc.prompts.jsonlines import read_json_lines
from seqproc.runs.format.tables import Sample
from seqproc.runs.plan import Draw
from seqproc.runs.sources import SequenceSource, check_ids, decode

if TYPE_CHECKING:
    from seqproc.engines import ModelSource


class FileSource(SequenceSource):
    """The lines of a file.

    Args:
        path: the file.
        model: its tokenizer reads texts; its vocabulary and context bound the ids.
        chat: wrap prompt texts as turns of the tokenizer's chat template.
    """

    def __init__(self, path: Path, model: ModelSource, *, chat: bool) -> None:
        self._path = path
        self._model = model
        self._chat = chat

    def __iter__(self) -> Iterator[Sample]:
        """Every line, as a sequence; raises DatasetError naming the first that is broken."""
        for index, (number, row) in enumerate(read_json_lines(self._path)):
            try:
                given = self._given(index, row)
            except (SequenceError, PromptError) as error:
                raise DatasetError(f"{self._path}, line {number}: {error}") from error
            yield given

    def describe(self) -> dict[str, Any]:
        """The file."""
        return {"source": str(self._path), "format": "jsonl", "chat": self._chat}

    def _given(self, index: int, row: Mapping[str, Any]) -> Sample:
        prompt_ids = _ids_or_text(row, "prompt", self._prompt_ids)
        response_ids = _ids_or_text(row, "response", self._response_ids)
        if not prompt_ids:
            raise SequenceError("'prompt_ids' is empty: a response needs a token before it")
        check_ids(prompt_ids + response_ids, self._model)
        text = self._prompt_text(row, prompt_ids)
        return Sample(
            draw=Draw(index=index, prompt_index=index, seed=None),
            entry=PromptEntry(
                text=text, question=row.get("question", row.get("prompt", text)), answer=_gold(row)
            ),
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            response_text=decode(self._model, response_ids, skip_special_tokens=True),
        )

    def _prompt_ids(self, prompt: str) -> tuple[int, ...]:
        if not prompt.strip():
            raise SequenceError("the prompt is blank: the model needs something to read")
        return encode_prompts(self._model.tokenizer, [self._as_read(prompt)])[0]

    def _prompt_text(self, row: Mapping[str, Any], prompt_ids: tuple[int, ...]) -> str:
        if row.get("prompt_ids") is None:
            return self._as_read(row["prompt"])
        if self._chat:
            raise SequenceError("chat formatting needs the prompt's text, not 'prompt_ids'")
        return decode(self._model, prompt_ids, skip_special_tokens=False)

    def _as_read(self, prompt: str) -> str:
        return as_chat(self._model.tokenizer, prompt) if self._chat else prompt

    def _response_ids(self, response: str) -> tuple[int, ...]:
        return tuple(self._model.tokenizer(response, add_special_tokens=False)["input_ids"])


def _ids_or_text(
    row: Mapping[str, Any], name: str, encode: Callable[[str], tuple[int, ...]]
) -> tuple[int, ...]:
    """Token ids under ``name_ids``, or else those of the text under ``name``."""
    if (ids := row.get(f"{name}_ids")) is not None:
        if not isinstance(ids, list) or any(type(token) is not int for token in ids):
            raise SequenceError(f"'{name}_ids' must be a list of integers, got {ids!r:.60}")
        return tuple(ids)
    text = row.get(name)
    if not isinstance(text, str):
        found = f"got {type(text).__name__}" if name in row else "found neither"
        raise SequenceError(
            f"expected the {name} as a string under {name!r}, or as token ids under "
            f"'{name}_ids'; {found}"
        )
    return encode(text)


def _gold(row: Mapping[str, Any]) -> Any:
    """The gold answer; a number as its text. `PromptEntry` refuses what is neither."""
    answer = row.get("answer")
    is_number = isinstance(answer, (int, float)) and not isinstance(answer, bool)
    return str(answer) if is_number else answer
