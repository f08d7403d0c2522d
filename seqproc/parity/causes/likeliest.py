"""The member of each family that the draws are the likeliest under, by their exact likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seqproc.parity.betting.evidence import WINDOWS, Window
from seqproc.parity.causes.candidates import Candidate, gains_in
from seqproc.parity.causes.members import Member, Parameter, span
from seqproc.parity.draws import Floats
from seqproc.parity.scoring import log_rs
from seqproc.parity.suspects import Case

SPAN = 20.0  # factor within which other values of a parameter do about as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeliest:
    """A member, and which others of its family do about as well."""

    member: Member
    window: Window  # that it is about
    span: tuple[float, float] | None  # values of the parameter; None where none is fitted


def likeliest(candidates: Sequence[Candidate], case: Case) -> list[Likeliest | None]:
    """Of each candidate; None of those without members.

    All members are scored in one forward, and those closer around the likeliest in another.
    """
    first = _log_es([one.members for one in candidates], candidates, case)
    nearer = [_closer(one, found) for one, found in zip(candidates, first, strict=True)]
    second = _log_es(nearer, candidates, case)
    return [
        _best([*one, *more], candidate.parameter)
        for candidate, one, more in zip(candidates, first, second, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A member and what it came to."""

    member: Member
    window: Window
    log_e: float  # against the policy, nats


def _log_es(
    members: Sequence[Sequence[Member]], candidates: Sequence[Candidate], case: Case
) -> list[list[_Found]]:
    """Every member with what it came to, of each candidate."""
    wholes = {
        (n, m): member.whole for n, some in enumerate(members) for m, member in enumerate(some)
    }
    logs = log_rs(case.answers, case.scorer, wholes, override=case.override) if wholes else {}
    return [
        [_found(member, candidate.window, logs[n, m], case) for m, member in enumerate(some)]
        for n, (candidate, some) in enumerate(zip(candidates, members, strict=True))
    ]


def _found(member: Member, window: Window, log_r: Floats, case: Case) -> _Found:
    """Of draws that nobody knows, how many they are is fitted with it."""
    windows = [window] if window.part == 1 else [one for one in WINDOWS if one.part < 1]
    log_es = {one: float(gains_in(one, log_r, case).sum()) for one in windows}
    best = max(log_es, key=lambda one: log_es[one])
    return _Found(member=member, window=best, log_e=log_es[best])


def _closer(candidate: Candidate, found: Sequence[_Found]) -> list[Member]:
    if candidate.parameter is None or len(found) < 2:
        return []
    return candidate.parameter.around(_profile(found))


def _profile(found: Sequence[_Found]) -> dict[float, float]:
    return {one.member.value: one.log_e for one in found if one.member.value is not None}


def _best(found: Sequence[_Found], parameter: Parameter | None) -> Likeliest | None:
    """The first one is of the catalogue: where it does about as well, and is round, it is named."""
    if not found:
        return None
    values = None
    if parameter is not None:
        values = span(_profile(found), SPAN, is_smooth=parameter.is_smooth)
    own, best = found[0], max(found, key=lambda one: one.log_e)
    is_round = parameter is None or parameter.is_round
    named = own if is_round and best.log_e < own.log_e + math.log(SPAN) else best
    return Likeliest(member=named.member, window=named.window, span=values)
