"""Errors that a user can mend: each says what was expected, what came and what to do.

Every error is a `SeqprocError`, and also the built-in error that a caller would guess
(`ValueError`, `KeyError`, …), so that either can be caught.
"""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A hint to end an error with, such as "; did you mean 'vllm'?"; empty without a near match."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


class SeqprocError(Exception):
    """Base of every error that seqproc raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message; ours are sentences.
        return " ".join(str(part) for part in self.args)


class ConfigError(SeqprocError, ValueError):
    """A configuration value, key or type is not one that seqproc accepts."""


class UnknownAttributeError(SeqprocError, AttributeError):
    """An attribute is set that nothing would read."""


class PromptError(SeqprocError, ValueError):
    """A prompt cannot be used: empty, not a string, or longer than the model's context."""


class DatasetError(SeqprocError, ValueError):
    """A dataset, split or dataset file is unknown or malformed."""


class ModelError(SeqprocError, ValueError):
    """A model, tokenizer or adapter cannot be loaded, or the two do not fit together."""


class OverrideError(SeqprocError, ValueError):
    """A parameter override names, shapes or types something that the model does not have."""


class SequenceError(SeqprocError, ValueError):
    """Sequences whose lengths, masks and tensors do not fit together."""


class EngineError(SeqprocError, RuntimeError):
    """An engine is unknown, could not start, or broke its contract."""


class EngineMemoryError(EngineError):
    """An engine ran out of memory; with smaller batches it may not."""


class EngineOptionError(EngineError, ConfigError):
    """An option of an engine is unknown, or one that it cannot be given."""


class ScoringError(SeqprocError, ArithmeticError):
    """Scoring produced something that is not a number."""


class RunError(SeqprocError, ValueError):
    """A run's folder is missing, unreadable, occupied or of another format."""


class RunMismatchError(RunError, ConfigError):
    """A run's folder holds another run than the one that is asked for.

    Attributes:
        differences: what the folder has and what was asked for, a line for each difference.
    """

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.differences = tuple(differences)

    def __str__(self) -> str:
        return "\n  ".join([super().__str__(), *self.differences])


class MissingFileError(RunError, FileNotFoundError):
    """A file of a run's folder is not there."""


class MissingDependencyError(SeqprocError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""


class Terminated(BaseException):
    """The process was asked to end by SIGTERM while a run was going on; as `KeyboardInterrupt`."""
