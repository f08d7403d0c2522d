"""The member of each family that the draws are the likeliest under, by their exact likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seqproc.parity.causes.candidates import Candidate, gains_in
from seqproc.parity.causes.members import Member, Parameter, span
from seqproc.parity.scoring import log_rs
from seqproc.parity.suspects import Case

SPAN = 20.0  # factor within which other values of a parameter do about as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeliest:
    """A member, and which others of its family do about as well."""

    member: Member
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


_Found = tuple[Member, float]  # and what it came to against the policy, nats


def _log_es(
    members: Sequence[Sequence[Member]], candidates: Sequence[Candidate], case: Case
) -> list[list[_Found]]:
    """Every member with what it came to, of each candidate."""
    wholes = {
        (n, m): member.whole for n, some in enumerate(members) for m, member in enumerate(some)
    }
    logs = log_rs(case.answers, case.scorer, wholes, override=case.override) if wholes else {}
    return [
        [
            (member, float(gains_in(candidate.window, logs[n, m], case).sum()))
            for m, member in enumerate(some)
        ]
        for n, (candidate, some) in enumerate(zip(candidates, members, strict=True))
    ]


def _closer(candidate: Candidate, found: Sequence[_Found]) -> list[Member]:
    if candidate.parameter is None or len(found) < 2:
        return []
    return candidate.parameter.around(_profile(found))


def _profile(found: Sequence[_Found]) -> dict[float, float]:
    return {member.value: log_e for member, log_e in found if member.value is not None}


def _best(found: Sequence[_Found], parameter: Parameter | None) -> Likeliest | None:
    """The first one is of the catalogue: where it does about as well, and is round, it is named."""
    if not found:
        return None
    values = None
    if parameter is not None:
        values = span(_profile(found), SPAN, is_smooth=parameter.is_smooth)
    best, log_e = max(found, key=lambda one: one[1])
    own, own_log_e = found[0]
    is_round = parameter is None or parameter.is_round
    return Likeliest(
        member=own if is_round and log_e < own_log_e + math.log(SPAN) else best,
        span=values,
    )
