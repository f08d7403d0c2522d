"""The helper process that asks math-verify whether two answers are equal.

Run as a script, and never imported by the library: JSON lines come in on standard input
(`{"gold": …, "answer": …}`), one `{"equal": …}` goes out for each. The first line out is
`{"ready": true}`, or `{"error": …}` when math-verify cannot be imported. Knows nothing of
tags, rewards or the rest of seqproc, so that it starts without importing torch.

Its argument is how many seconds of processor time a question may take. The operating system
ends the process when they are over, even inside one long operation on huge integers, which
no exception could interrupt.
"""

import json
import logging
import os
import re
import signal
import sys
from contextlib import suppress
from typing import Any, TextIO

MAX_MEMORY_BYTES = 2 * 1024**3
"""Address space that the process may take, where the platform can limit it."""

_WORD = re.compile(r"[^\W\d_]{2,}")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")
_LATEX_DELIMITER = re.compile(r"\$|\\boxed|\\\(|\\\[")
_ONLY_WORDS = re.compile(r"[^\W\d_]{2,}(\W+[^\W\d_]+)*\W*")


def main() -> None:
    """Answer questions until standard input ends."""
    channel = _take_standard_output()
    _limit_process()
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        _send(channel, error=str(error))
        return
    _send(channel, ready=True)
    for line in sys.stdin:
        question = json.loads(line)
        _limit_processor_time(float(sys.argv[1]))
        equal = _judge(question["gold"], question["answer"])
        _limit_processor_time(0.0)
        _send(channel, equal=equal)


def _judge(gold: str, answer: str) -> bool:
    # An answer that math-verify chokes on, in whichever way, is not the gold answer.
    try:
        return are_equal(gold, answer)
    except Exception:
        return False


def are_equal(gold: str, answer: str) -> bool:
    """Whether math-verify holds the two for equal.

    Both are parsed as text that contains an expression, unless one is a bare formula, in which
    math-verify would see the numbers alone (`x + 1` as 1), or one has none in it. Then both are
    parsed as LaTeX; but not where one is only words, which LaTeX reads as products of letters,
    so that anagrams would be equal.
    """
    if not (_is_bare_formula(gold) or _is_bare_formula(answer)):
        plain_gold, plain_answer = _parse(gold), _parse(answer)
        if plain_gold and plain_answer:
            return _verify(plain_gold, plain_answer)
    if _ONLY_WORDS.fullmatch(gold) or _ONLY_WORDS.fullmatch(answer):
        return False
    return _verify(_parse(f"${gold}$"), _parse(f"${answer}$"))


def _is_bare_formula(text: str) -> bool:
    """Whether it has variables or LaTeX commands, but no words and no LaTeX delimiters."""
    if _LATEX_DELIMITER.search(text):
        return False
    letters = _LATEX_COMMAND.sub(" ", text)
    return _WORD.search(letters) is None and re.search(r"[^\W\d_]|\\", text) is not None


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    no_limit: Any = None  # the caller has its own; typed as an int
    return list(parse(text, parsing_timeout=no_limit))


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, timeout_seconds=None))


def _take_standard_output() -> TextIO:
    """Keep standard output for the answers; what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.CRITICAL)
    return channel


def _limit_process() -> None:
    # Ctrl-C reaches the whole terminal; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:  # Windows: only the parent's clock bounds a question there
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    unlimited = hard == resource.RLIM_INFINITY
    soft = MAX_MEMORY_BYTES if unlimited else min(MAX_MEMORY_BYTES, hard)
    with suppress(ValueError, OSError):  # macOS knows the limit but refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _limit_processor_time(seconds: float) -> None:
    """End the process after so much more processor time; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _send(channel: TextIO, **message: object) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
