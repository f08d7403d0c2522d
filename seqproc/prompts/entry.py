"""One prompt of a dataset, with what is needed to reward a response to it.

Knows nothing of datasets, models or tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seqproc.errors import PromptError


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptEntry:
    """A prompt as the model reads it, the question behind it, and the gold answer.

    Raises:
        PromptError: `text` is blank or not a string, another field has the wrong type, or one holds
            half of a surrogate pair.
    """

    text: str
    """The whole formatted prompt, template included, exactly as the model reads it."""
    question: str
    """The question alone, without a template."""
    answer: str | None = None
    """The gold answer, or None where there is none (its responses then earn no reward)."""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Whatever else the dataset says about this prompt; to be read, not changed."""

    def __post_init__(self) -> None:
        _require(isinstance(self.text, str), "text", "a string", self.text)
        _require(isinstance(self.question, str), "question", "a string", self.question)
        _require(isinstance(self.answer, str | None), "answer", "a string or None", self.answer)
        _require(isinstance(self.meta, Mapping), "meta", "a mapping", self.meta)
        for name in ("text", "question", "answer"):
            refuse_surrogates(f"PromptEntry.{name}", getattr(self, name) or "")
        if not self.text.strip():
            raise PromptError(
                f"PromptEntry.text must hold something for the model to read, got {self.text!r}. "
                "Drop the entry, or fix the column or template it came from"
            )


def refuse_surrogates(name: str, text: str) -> None:
    """Refuse what is no Unicode text: it has no UTF-8 bytes, so neither tokens nor a file for it.

    Half a surrogate pair comes of JSON that was cut inside an escape, or of bytes that were decoded
    with ``errors="surrogateescape"``.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{name} holds half of a surrogate pair, {text[error.start]!r}, as character "
            f"{error.start}: decode its source as what it is, or use errors='replace'"
        ) from error


def _require(fits: bool, field_name: str, expected: str, value: object) -> None:
    if not fits:
        raise PromptError(
            f"PromptEntry.{field_name} must be {expected}, "
            f"got {type(value).__name__}: {value!r:.80}"
        )
