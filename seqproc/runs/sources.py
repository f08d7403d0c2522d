"""Sources of given sequences: another run's folder, or a file of JSON lines.

Both come out as `Sample`s, one at a time, checked against the model that is to score them.
Knows files and token ids; nothing of scoring.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqproc._util.arguments import require_path
from seqproc.errors import RunError, SequenceError
from seqproc.runs.format.tables import Sample, sample_of
from seqproc.runs.reader import Run, open_run

if TYPE_CHECKING:
    from seqproc.engines import ModelSource

_ROWS_COMPARED = 64  # responses decoded to see whether a tokenizer is the run's


class SequenceSource(ABC):
    """Sequences to score, in a fixed order; may be iterated any number of times."""

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]:
        """Read the sequences, raising a `SeqprocError` that names the first that cannot be used."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Where the sequences come from, JSON-ready, for the manifest."""

    def check(self) -> int:
        """Read everything once, so that whatever is wrong comes up now; count the sequences.

        Raises:
            RunError: there are none.
        """
        num = sum(1 for _ in self)
        if not num:
            raise RunError(f"there is nothing to score in {self.describe()['source']}")
        return num


def open_source(
    path: str | os.PathLike[str], model: ModelSource, *, chat: bool = False
) -> SequenceSource:
    """Open a run's folder or a file of JSON lines.

    Args:
        path: the folder or file.
        model: its tokenizer reads texts; its vocabulary and context bound the ids.
        chat: wrap the prompts of a file as turns of the tokenizer's chat template.

    Raises:
        RunError: there is no such path, or the folder is no run of this tokenizer.
    """
    from seqproc.runs.file_source import FileSource

    is_run = is_folder(path)
    path = Path(path).expanduser()
    if is_run:
        if chat:
            raise RunError(f"{path} is a run, whose prompts are token ids: leave chat off")
        return RunSource(open_run(path), model)
    if not path.exists():
        raise RunError(f"there is no run folder or file {path}")
    return FileSource(path, model, chat=chat)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a source is a folder.

    Raises:
        RunError: it is no path, or the operating system does not take it.
    """
    require_path("the source", path, RunError)
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, or "~nobody"
        raise RunError(f"cannot look at {os.fspath(path)!r:.100}: {error}") from error


def check_ids(ids: Sequence[int], model: ModelSource) -> None:
    """Refuse token ids of a sequence that the model cannot read.

    Raises:
        SequenceError: ids outside the vocabulary, or more of them than the context holds.
    """
    if not 0 <= min(ids) <= max(ids) < model.vocab_size:
        raise SequenceError(
            f"token ids go from {min(ids)} to {max(ids)}, but the model's vocabulary has "
            f"{model.vocab_size}: were they made with another tokenizer?"
        )
    if model.max_context is not None and len(ids) > model.max_context:
        raise SequenceError(
            f"{len(ids)} tokens are more than the model's context of {model.max_context}"
        )


def decode(model: ModelSource, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """The text of ids of the vocabulary, as engines decode."""
    text: str = model.tokenizer.decode(
        list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    return text


class RunSource(SequenceSource):
    """The rows of a run.

    Args:
        run: the run.
        model: what is to score it.

    Raises:
        RunError: the responses read differently with the model's tokenizer.
    """

    _COLUMNS = (
        "draw",
        "prompt_index",
        "seed",
        "prompt_text",
        "question",
        "answer",
        "prompt_ids",
        "response_ids",
        "response_text",
        "finish_reason",
        "stop_string",
        "engine_logqs",
        "reward",
    )

    def __init__(self, run: Run, model: ModelSource) -> None:
        self._run = run
        self._model = model
        _require_same_tokenizer(run, model)

    def __iter__(self) -> Iterator[Sample]:
        """Every row, as a sequence."""
        for batch in self._run.batches(self._COLUMNS):
            for row in batch.to_pylist():
                try:
                    check_ids([*row["prompt_ids"], *row["response_ids"]], self._model)
                except SequenceError as error:
                    raise SequenceError(f"draw {row['draw']} of {self._run.url}: {error}") from None
                yield sample_of(row)

    def describe(self) -> dict[str, Any]:
        """The run's folder, and what made the run."""
        manifest = self._run.manifest
        kept = ("spec", "model", "policy", "stopping", "engine", "seqproc_version")
        return {
            "source": self._run.url,
            "format": "run",
            "run": {name: getattr(manifest, name) for name in kept},
        }


def _require_same_tokenizer(run: Run, model: ModelSource) -> None:
    """Refuse a run most of whose responses read differently from the texts it recorded."""
    columns = ("response_ids", "response_text")
    first = next(iter(run.batches(columns, batch_size=_ROWS_COMPARED)), None)
    rows = [] if first is None else first.to_pylist()
    differing = sum(not _reads_as(model, row["response_ids"], row["response_text"]) for row in rows)
    if 2 * differing > len(rows):
        raise RunError(
            f"{differing} of the first {len(rows)} responses of {run.url} read differently with "
            f"the tokenizer of {model.name!r}: the run was made with another tokenizer. Score it "
            "with a model that has the same one"
        )


def _reads_as(model: ModelSource, ids: list[int], text: str) -> bool:
    if max(ids, default=0) >= model.vocab_size:
        return False
    return decode(model, ids, skip_special_tokens=True) == text
