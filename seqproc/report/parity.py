"""What a parity.json says, for the page. The file is untrusted: what does not fit is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seqproc.errors import RunError
from seqproc.report.text import number

FILE = "parity.json"
_MAX_CHARS = 2000  # of a text
_MAX_CHECKS = 100
_MAX_ROWS = 500  # of a table

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckShown:
    """One engine under one policy, in words."""

    label: str
    policy: str
    counts: str
    holds: bool
    said: str  # the verdict
    findings: tuple[Row, ...]  # link, test, statistic, p, detail
    failed: frozenset[int]  # places of the findings that were rejected
    mismatch: tuple[Row, ...]  # name, value, standard error
    causes: tuple[str, ...]
    worst: tuple[Row, ...]  # draw, step, what stands before, token, log q, by the engine, likeliest


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityShown:
    """A whole report, in words."""

    model: str
    holds: bool
    said: str
    checks: tuple[CheckShown, ...]
    comparisons: tuple[Row, ...]  # engines, draws, identical, divergences, explained


def read_parity(content: bytes, name: str) -> ParityShown:
    """Read a report.

    Args:
        content: of the file.
        name: of the file, for errors.

    Raises:
        RunError: it is no JSON, or no report of `seqproc parity`.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{name} is not valid JSON ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("checks"), dict):
        raise RunError(f"{name} is no report of `seqproc parity`: it has no checks")
    checks = [
        _check(str(label), one)
        for label, several in values["checks"].items()
        for one in _dicts(several)
    ]
    holds = values.get("holds") is True
    return ParityShown(
        model=_text(values.get("model")),
        holds=holds,
        said=_said(values, holds),
        checks=tuple(checks[:_MAX_CHECKS]),
        comparisons=tuple(map(_comparison, _dicts(values.get("comparisons")))),
    )


def _said(values: Mapping[str, Any], holds: bool) -> str:
    if values.get("is_complete") is not True:
        return "Not all checks are done."
    if not holds:
        return "Parity does not hold."
    return "Parity holds." if values.get("is_decided") is True else "Not decided: too few draws."


def _check(label: str, one: Mapping[str, Any]) -> CheckShown:
    verdict = _dict(one.get("verdict"))
    failed = [name for name in _list(verdict.get("failed")) if isinstance(name, str)]
    findings = _dicts(one.get("findings"))
    holds = verdict.get("holds") is True
    rate = number(_float(verdict.get("false_alarms")))
    return CheckShown(
        label=_text(label),
        policy=_policy(_dict(one.get("policy"))),
        counts=", ".join(
            f"{_text(one.get(f'num_{name}'))} {name}" for name in ("prompts", "draws", "tokens")
        ),
        holds=holds,
        said=f"{'Holds' if holds else 'Does not hold'} ({_text(verdict.get('num_tests'))} tests, "
        f"false alarms {rate}){': ' if failed else ''}{_text(', '.join(failed))}",
        findings=tuple(map(_finding, findings)),
        failed=frozenset(n for n, found in enumerate(findings) if found.get("name") in failed),
        mismatch=tuple(_mismatch(_dict(one.get("mismatch")))),
        causes=tuple(map(_cause, _dicts(one.get("causes")))),
        worst=tuple(map(_worst, _dicts(one.get("worst")))),
    )


def _policy(policy: Mapping[str, Any]) -> str:
    if policy.get("do_sample") is False:
        return "greedy"
    return f"T = {_text(policy.get('temperature'))}, top_p = {_text(policy.get('top_p'))}"


def _finding(found: Mapping[str, Any]) -> Row:
    statistic, p_value = _float(found.get("statistic")), _float(found.get("p_value"))
    return (
        _text(found.get("link")),
        _text(found.get("name")),
        number(statistic, 4),
        number(p_value, 3),
        _text(found.get("detail")),
    )


def _mismatch(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for name, metric in list(metrics.items())[:_MAX_ROWS]:
        values = _dict(metric)
        value, error = _float(values.get("value")), _float(values.get("standard_error"))
        yield _text(name), number(value, 4), number(error, 2)


def _cause(cause: Mapping[str, Any]) -> str:
    detail = _text(cause.get("detail"))
    said = f"{_text(cause.get('link'))}: {_text(cause.get('description'))}"
    rest = "" if cause.get("explains") is True else " It does not explain all."
    return f"{said}{f' ({detail})' if detail else ''}.{rest}"


def _worst(token: Mapping[str, Any]) -> Row:
    logs = [number(_float(token.get(name)), 4) for name in ("log_q", "engine_log_q")]
    return (
        _text(token.get("index")),
        _text(token.get("step")),
        _text(token.get("context")),
        f"{_text(token.get('text'))!r} (id {_text(token.get('token_id'))})",
        *logs,
        repr(_text(token.get("first_text"))),
        _text(token.get("why")),
    )


def _comparison(one: Mapping[str, Any]) -> Row:
    divergences = _dicts(one.get("divergences"))
    explained = sum(d.get("is_explained") is True for d in divergences)
    return (
        " and ".join(_text(name) for name in _list(one.get("engines"))),
        _text(one.get("num_draws")),
        _text(one.get("num_identical")),
        str(len(divergences)),
        str(explained),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)[:_MAX_CHARS]


def _float(value: Any) -> float | None:
    """A number, also one that strict JSON spells as a string; None of anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value in ("inf", "-inf", "nan"):
        return float(value)
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value[:_MAX_ROWS] if isinstance(value, list) else []


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in _list(value) if isinstance(one, dict)]
