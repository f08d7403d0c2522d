"""One side of a comparison: a run with its own scores, or with a further set of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc.report.rows import draws_of
from seqproc.runs.format.schema import TOKEN_COLUMNS, samples_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs import Run

_ABSENT = "–"  # in the place of a setting that a side does not have


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A run, and which of its scores are compared."""

    run: Run
    scores: str | None  # the name of a further set; None: those of the run's own policy

    @property
    def label(self) -> str:
        """The run's folder or URL, and the set of scores."""
        return self.run.url if self.scores is None else f"{self.run.url}, scores {self.scores}"

    @property
    def are_all_rewarded(self) -> bool:
        """Whether its reward needs no gold answer."""
        return self.run.manifest.reward.get("name") != "tag_pref"

    def token_columns(self) -> list[str]:
        """The per-token columns that its scores keep."""
        if self.scores is None:
            return [name for name in TOKEN_COLUMNS if name in self.run.columns]
        return [n for n in TOKEN_COLUMNS if n in self.run.scores(self.scores).column_names]

    def columns(self) -> list[str]:
        """All columns of its draws: of the samples, and of the scores that are compared."""
        if self.scores is None:
            return self.run.columns
        scores = [name for name in self.run.scores(self.scores).column_names if name != "draw"]
        return [*samples_schema().names, *scores]

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Columns of its draws, the draw itself first, in the order of the draws.

        Raises:
            NotKeptError: there are no rows.
            RunError: the set of scores is not there, or not complete.
        """
        wanted = list(dict.fromkeys(["draw", *columns]))
        if self.scores is None:
            return draws_of(self.run, wanted)
        of_samples = samples_schema().names
        samples = draws_of(self.run, [name for name in wanted if name in of_samples])
        scores = self.run.scores(self.scores)
        draws, scored = samples["draw"].to_numpy(), scores["draw"].to_numpy()
        samples, scores = (
            samples.filter(np.isin(draws, scored)),
            scores.filter(np.isin(scored, draws)),
        )
        for name in columns:
            if name not in of_samples:
                samples = samples.append_column(scores.schema.field(name), scores[name])
        return samples.select(wanted)

    def settings(self) -> dict[str, str]:
        """All that its rows depend on, by dotted names, as text."""
        values = dict(self.run.manifest.identity())
        if self.scores is not None:
            made_by = self.run.score_set(self.scores).made_by
            values.update({_set_name(name, values): value for name, value in made_by.items()})
        return dict(_flat("", values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting that the two do not share."""

    name: str  # with dots between its parts
    a: str
    b: str


def differing(a: Side, b: Side) -> tuple[list[Setting], int]:
    """The settings that differ, in the order of the manifest, and how many are the same."""
    of_a, of_b = a.settings(), b.settings()
    names = dict.fromkeys([*of_a, *of_b])
    found = [
        Setting(name=name, a=of_a.get(name, _ABSENT), b=of_b.get(name, _ABSENT)) for name in names
    ]
    differ = [one for one in found if one.a != one.b]
    return differ, len(found) - len(differ)


def _set_name(name: str, values: Mapping[str, Any]) -> str:
    """A setting of a set of scores: in the place of the run's own, or beside them."""
    return name if name in values else f"scores.{name}"


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Mappings taken apart; lists as one value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), item)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None or value == {} else str(value)
