"""A run that goes on, and how it ends: complete, interrupted or failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from seqproc.errors import SeqprocError, Terminated
from seqproc.runs.run_folder import RunFolder

_MAX_ERROR_CHARS = 500


@contextmanager
def going_on(run: RunFolder) -> Iterator[None]:
    """A scope that leaves the manifest "complete", "interrupted" or "failed"."""
    try:
        yield
    except BaseException as error:
        is_asked_for = isinstance(error, (KeyboardInterrupt, Terminated))
        kept = int(run.is_sampled.sum())
        error.add_note(
            f"{kept} of {run.manifest.num_own_draws} draws are kept in {run.folder.url}; the "
            "same command goes on from there"
        )
        try:
            if is_asked_for:
                run.end("interrupted")
            else:
                run.end("failed", _one_line(error))
        except SeqprocError as second:  # the first error is the one to report
            error.add_note(str(second))
        raise
    run.end("complete")


def _one_line(error: BaseException) -> str:
    """An error as a manifest says it."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}".removesuffix(": ")[:_MAX_ERROR_CHARS]
