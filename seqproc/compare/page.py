"""A comparison as one file of HTML, made as the page of a run is: offline, its texts inert."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqproc import __version__
from seqproc._util.arguments import require_path
from seqproc._util.atomic import write_atomically
from seqproc._util.clock import utc_now
from seqproc.compare.compare import Comparison
from seqproc.compare.outliers import Outlier
from seqproc.compare.panels import panels
from seqproc.compare.texts import Shown, shown_tokens
from seqproc.errors import RunError
from seqproc.report.page import environment, plotly_script, require_report, text_of
from seqproc.report.place import require_place
from seqproc.report.text import number
from seqproc.report.tokens.pieces import Pieces, local_tokenizer

if TYPE_CHECKING:
    from seqproc.models.tokenization import Tokenizer

_PACKAGE = "seqproc.compare"
_MAX_PROMPT = 2_000  # characters of a prompt that are shown

Tokenizers = tuple["Tokenizer | None", "Tokenizer | None"]


def write_page(
    comparison: Comparison,
    path: str | os.PathLike[str],
    *,
    tokenizers: Tokenizers | Literal["local"] = "local",
    title: str | None = None,
) -> int:
    """Write the page of a comparison, whole or not at all.

    Args:
        comparison: from `compare_runs`.
        path: of the page, a local file; an earlier one is replaced.
        tokenizers: of A and B, which make texts of tokens. "local": those of the runs' models,
            where they are on this machine's disk; else tokens are shown by their ids.
        title: of the page; None for one made of the two models.

    Returns:
        The size of the page, bytes.

    Raises:
        RunError: the page cannot be written.
        ConfigError: the path is of something that is no page (`require_place`).
        MissingDependencyError: jinja2 or plotly is not installed.
    """
    require_path("the page", path, RunError)
    require_place(Path(path))
    content = render_page(comparison, tokenizers=tokenizers, title=title).encode()
    write_atomically(Path(path), lambda file: file.write(content))
    return len(content)


def render_page(
    comparison: Comparison,
    *,
    tokenizers: Tokenizers | Literal["local"] = "local",
    title: str | None = None,
) -> str:
    """The page as text; see `write_page`."""
    require_report()
    from markupsafe import Markup

    names = [side.run.manifest.model.get("name") for side in (comparison.a, comparison.b)]
    same, parted = _sequences(comparison, tokenizers)
    return (
        environment(_PACKAGE)
        .get_template("compare.html.j2")
        .render(
            title=title or f"{names[0]} against {names[1]}",
            found=comparison,
            panels=list(panels(comparison)),
            same=same,
            parted=parted,
            made=utc_now(),
            seqproc_version=__version__,
            css=Markup(text_of("page.css") + text_of("compare.css", _PACKAGE)),
            js=Markup(text_of("page.js")),
            plotly=Markup(plotly_script()),
        )
    )


PairShown = tuple[str, str, list[tuple[str, Shown]]]  # what differs, prompt, A and B


def _sequences(
    comparison: Comparison, tokenizers: Tokenizers | Literal["local"]
) -> tuple[list[PairShown], list[PairShown]]:
    """The pairs that differ most, token by token: of the same tokens, and those that part."""
    paired = comparison.paired
    if paired is None or not (paired.most_different or paired.first_parted):
        return [], []
    if tokenizers == "local":
        tokenizers = local_tokenizer(comparison.a.run), local_tokenizer(comparison.b.run)
    cutters = [None if one is None else Pieces(one) for one in tokenizers]
    same, parted = (
        [_sequence(one, cutters) for one in listed]
        for listed in (paired.most_different, paired.first_parted)
    )
    return same, parted


def _sequence(one: Outlier, cutters: list[Pieces | None]) -> PairShown:
    where = "the same tokens" if one.parting is None else f"part at step {one.parting}"
    said = (
        f"Draw {one.draw}: {where}, Δ Σ log p = {number(one.logprob)} nats, "
        f"Δ reward = {number(one.reward)}"
    )
    cut = len(one.prompt) > _MAX_PROMPT
    prompt = one.prompt[:_MAX_PROMPT] + (" […]" if cut else "")
    sides = [
        (name, shown_tokens(response, one, cutter))
        for name, response, cutter in zip("AB", (one.a, one.b), cutters, strict=True)
    ]
    return said, prompt, sides
