"""A run as one file of HTML: everything is in it, and it asks nothing of a network.

What a run holds is untrusted. Whatever the template shows goes through `text.shown`, which spells
out what cannot be seen, and then through jinja2's escaping; data of figures is JSON in which no
character can end a script. A content security policy forbids the page to load anything.
"""

from __future__ import annotations

import importlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqproc import __version__
from seqproc._util.arguments import require_path
from seqproc._util.atomic import write_atomically
from seqproc._util.clock import utc_now
from seqproc._util.optional import require_package
from seqproc.errors import RunError
from seqproc.plot.figures import require_plotly
from seqproc.report.panels import panels
from seqproc.report.parity import FILE as PARITY
from seqproc.report.parity import ParityShown, read_parity
from seqproc.report.place import require_place
from seqproc.report.provenance import CONFIG_FILE, command_of, facts
from seqproc.report.text import shown

if TYPE_CHECKING:
    from jinja2 import Environment
    from plotly.graph_objects import Figure

    from seqproc.runs import Run

_MAX_QUARANTINED = 200  # draws that are listed

# What could end a script, or a line of one, as JSON spells it.
_IN_SCRIPTS = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def require_report() -> None:
    """Refuse to go on without what a page is made with.

    Raises:
        MissingDependencyError: jinja2 or plotly is not installed.
    """
    require_package("jinja2", extra="report", purpose="the page of a run")
    require_plotly()


def write_page(
    run: Run,
    path: str | os.PathLike[str],
    *,
    parity: str | os.PathLike[str] | None = None,
    tokens: bool = True,
    title: str | None = None,
) -> int:
    """Write a run's page, whole or not at all.

    Args:
        run: the run; also one that is not complete, which the page then says.
        path: of the page, a local file; an earlier one is replaced.
        parity: a report of `seqproc parity`; None for parity.json in the run's folder, if there.
        tokens: whether the sequences themselves are on it, token by token.
        title: of the page; None for one made of the model and the dataset.

    Returns:
        The size of the page, bytes.

    Raises:
        RunError: the run or the report cannot be read, or the page cannot be written.
        ConfigError: the path is of something that is no page (`require_place`).
        MissingDependencyError: jinja2 or plotly is not installed.
    """
    require_path("the page", path, RunError)
    require_place(Path(path))
    content = render_page(run, parity=parity, tokens=tokens, title=title).encode()
    write_atomically(Path(path), lambda file: file.write(content))
    return len(content)


def render_page(
    run: Run,
    *,
    parity: str | os.PathLike[str] | None = None,
    tokens: bool = True,
    title: str | None = None,
) -> str:
    """A run's page as text; see `write_page`."""
    require_report()
    from markupsafe import Markup

    manifest = run.manifest
    made = list(panels(run))
    report, why_not = _parity(run, parity)
    model, dataset = manifest.model.get("name"), manifest.spec.get("dataset", "given sequences")
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=title or f"{model} on {dataset}",
            url=run.url,
            manifest=manifest,
            facts=facts(manifest),
            command=command_of(manifest),
            config_file=CONFIG_FILE,
            quarantined=[
                (one.draw, one.prompt_index, one.step, one.time, one.reason)
                for one in run.quarantined[:_MAX_QUARANTINED]
            ],
            panels=made,
            parity=report,
            parity_missing=why_not,
            tokens=_tokens(run) if tokens else None,
            with_tokens=tokens,
            made=utc_now(),
            seqproc_version=__version__,
            css=Markup(text_of("page.css")),
            js=Markup(text_of("page.js")),
            plotly=Markup(plotly_script()),
        )
    )


def in_script(value: Any) -> str:
    """JSON that can stand in a script of a page: no character of it ends one."""
    text = json.dumps(value, allow_nan=False)
    for character, spelt in _IN_SCRIPTS.items():
        text = text.replace(character, spelt)
    return text


def figure_json(figure: Figure) -> str:
    """A figure's data and layout for a script; the page brings the colours of text and lines."""
    values = json.loads(figure.to_json())
    values["layout"].pop("template", None)
    return in_script(values)


def environment(*packages: str) -> Environment:
    """Where templates of pages are: in packages, and in this one. All that they show is escaped.

    Args:
        packages: whose folders are looked through first.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def visible(value: Any) -> Any:
        return value if isinstance(value, Markup) else shown(str(value))

    def as_json(figure: Figure) -> Markup:
        return Markup(figure_json(figure))

    made = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in (*packages, "seqproc.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    made.filters["figure_json"] = as_json
    return made


def text_of(name: str, package: str = "seqproc.report") -> str:
    """A file that a page is made of."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def plotly_script() -> str:
    """Plotly, as it can stand in a page: it does not hold the end of a script."""
    from plotly.offline import get_plotlyjs

    return _script(get_plotlyjs())


def _script(source: str) -> str:
    """A script that can stand in a page: it does not hold the end of one."""
    if "</script" in source.lower() or "<!--" in source:
        source = source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return source


def _parity(run: Run, given: str | os.PathLike[str] | None) -> tuple[ParityShown | None, str]:
    """The report that was named, or that lies in the run's folder; or why there is none.

    Raises:
        RunError: the one that was named cannot be read.
    """
    from seqproc.runs.store.folder import open_folder

    if given is not None:
        require_path("the report of parity", given, RunError)
        try:
            return read_parity(Path(given).read_bytes(), os.fspath(given)), ""
        except OSError as error:
            raise RunError(f"cannot read {os.fspath(given)}: {error.strerror or error}") from error
    folder = open_folder(run.url)
    if not folder.exists(PARITY):
        return None, (
            f"There is no {PARITY} in the run's folder: `seqproc parity --out RUN` writes one, and "
            "--parity FILE names one that lies elsewhere."
        )
    try:
        return read_parity(folder.read(PARITY), PARITY), ""
    except RunError as error:  # of a file that is not the run's own
        return None, f"The report in the run's folder cannot be shown: {error}."


def _tokens(run: Run) -> Any:
    """The view of the run's sequences token by token, as safe markup."""
    from markupsafe import Markup

    token_view = getattr(importlib.import_module("seqproc.report.tokens"), "token_view", None)
    if token_view is None or not run.num_rows:
        return None
    view = token_view(run)
    return {name: Markup(getattr(view, name)) for name in ("html", "css", "script", "data")}
