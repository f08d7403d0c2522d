"""The prompts that a run draws, each formatted and tokenised once; and which draw has which.

Memory grows with the distinct prompts, not with the draws, but for eight bytes each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from seqproc.engines.base import Request
from seqproc.errors import PromptError
from seqproc.models import tokenization
from seqproc.prompts import PromptEntry, load_prompts
from seqproc.runs.plan import Draw, RunSpec, drawn_prompts, planned_draw

if TYPE_CHECKING:
    from seqproc.processor import SequenceProcessor


class DrawnPrompts:
    """What a run draws from.

    Args:
        processor: its tokenizer and context length.
        spec: the run.

    Raises:
        DatasetError: the dataset or split is unknown, malformed or too small.
        PromptError: none of the prompts can be read, or there is no chat template.
    """

    def __init__(self, processor: SequenceProcessor, spec: RunSpec) -> None:
        self._spec = spec
        pool = load_prompts(spec.dataset, spec.split, data_dir=spec.data_dir)
        self._prompt_of = drawn_prompts(spec, len(pool))
        drawn = np.unique(self._prompt_of).tolist()
        self._entries = {i: _as_read(processor, pool[i], chat=spec.chat) for i in drawn}
        texts = [self._entries[i].text for i in drawn]
        ids = tokenization.encode_prompts(processor.source.tokenizer, texts)
        self._ids = dict(zip(drawn, ids, strict=True))
        self._faults = {i: fault for i in drawn if (fault := _fault(processor, self._ids[i]))}
        if len(self._faults) == len(drawn):
            raise PromptError(
                f"of the {len(drawn)} prompts drawn from {spec.dataset!r} ({spec.split}) none can "
                f"be read: {next(iter(self._faults.values()))}"
            )

    def golds(self) -> list[str | None]:
        """Gold answers of all prompts drawn."""
        return [entry.answer for entry in self._entries.values()]

    def digest(self) -> str:
        """Of every prompt drawn, as text, question, answer and token ids."""
        hashed = hashlib.sha256()
        for i, entry in self._entries.items():
            line = [i, entry.text, entry.question, entry.answer, self._ids[i]]
            hashed.update(json.dumps(line).encode())
        return hashed.hexdigest()[:32]

    def draw(self, index: int) -> Draw:
        """Draw i."""
        return planned_draw(self._spec, self._prompt_of, index)

    def entry(self, draw: Draw) -> PromptEntry:
        """The prompt of a draw, as the model reads it."""
        return self._entries[draw.prompt_index]

    def unreadable(self, indices: Iterable[int]) -> Iterator[tuple[Draw, PromptError]]:
        """Those draws whose prompt the model cannot read, and why."""
        for index in indices:
            if fault := self._faults.get(int(self._prompt_of[index])):
                yield self.draw(int(index)), PromptError(fault)

    def requests(self, indices: Iterable[int]) -> Iterator[Request]:
        """What the engine is asked for, one by one."""
        for index in indices:
            draw = self.draw(int(index))
            assert draw.seed is not None
            ids = self._ids[draw.prompt_index]
            yield Request(index=draw.index, prompt_ids=ids, seed=draw.seed)


def _as_read(processor: SequenceProcessor, entry: PromptEntry, *, chat: bool) -> PromptEntry:
    if not chat:
        return entry
    text = tokenization.as_chat(processor.tokenizer, entry.text)
    return dataclasses.replace(entry, text=text)


def _fault(processor: SequenceProcessor, ids: tuple[int, ...]) -> str | None:
    """Why the model cannot read a prompt and answer it; None when it can."""
    try:
        tokenization.check_context(
            [ids], [""], processor.config.max_new_tokens, processor.source.max_context
        )
    except PromptError as error:
        return str(error)
    return None
