"""Every code block of the README and of docs/ runs, page by page from the top.

Python and `seqproc` commands run in the order of the page, in one namespace and one folder, with a
tiny model in the place of the real one and with few draws. What a test has not, such as a cluster,
is marked in the page with the reason; its syntax and its options are checked all the same.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers import doc_checks
from helpers.doc_blocks import (
    PLACEHOLDER,
    Block,
    blocks_of,
    check_options,
    check_shell_syntax,
    commands,
    make_small,
    run_python,
    seqproc_calls,
)
from helpers.doc_names import NAMES, REPLACED, SMALL

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCKS = {page: blocks_of(page) for page in PAGES}
RUN = [page for page, blocks in BLOCKS.items() if any(b.reason is None for b in blocks)]
MARKED = [block for blocks in BLOCKS.values() for block in blocks if block.reason is not None]
LANGUAGES = {"python", "sh", "", "text", "json", "toml", "sql", "mermaid"}  # tests read the SQL


def names_of(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.fixture
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page finds no name that a test has registered, and what it registers is forgotten."""
    from seqproc.engines import registry as engines
    from seqproc.prompts import load_prompts, registry

    load_prompts("arithmetic")  # so that the built-in ones are there
    monkeypatch.setattr(engines, "_registered", {})
    monkeypatch.setattr(registry, "_DATASETS", dict(registry._DATASETS))


@pytest.mark.slow
@pytest.mark.usefixtures("_own_registries")
@pytest.mark.parametrize("page", RUN, ids=names_of(RUN))
def test_a_page_runs_from_the_top(
    page: Path, docs_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = names_after(page, docs_model, tmp_path, monkeypatch)
    if page.name == "cookbook.md":
        check_cookbook(names)
    elif page.name == "start-parity.md":
        assert not names["check"].verdict.holds
        assert "temperature" in names["check"].causes[0].description


def names_after(
    page: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The names of a page after all of its blocks, run in a folder with a small model."""
    (folder / "tiny").symlink_to(model)
    monkeypatch.chdir(folder)
    name = str(page.relative_to(ROOT))
    names = NAMES[name](folder) if name in NAMES else {}
    for block in BLOCKS[page]:
        if block.reason is None:
            run(block, replaced(block, name), names)
    return names


def check_cookbook(names: dict[str, Any]) -> None:
    """Its numbers agree with other derivations, and the comparison can fail."""
    for name, (number, other) in doc_checks.of_cookbook(names).items():
        assert number == pytest.approx(other, rel=1e-3), name
    wrong = {"eta": names["eta"] * 1.01, "beta": -names["beta"], "damping": names["damping"] * 1.1}
    for name, value in wrong.items():
        pairs = doc_checks.of_cookbook(names | {name: value}).values()
        assert any(number != pytest.approx(other, rel=1e-3) for number, other in pairs), name
    # A seed is fixed; with others, one of six would be as far from 0 in some 10⁻⁴ of runs.
    assert abs(doc_checks.of_controls(names)).max() < 5
    halves = names["h"] - names["adjusted"]
    assert halves.any()
    assert names["cosine"] > 0.9


@pytest.mark.parametrize("block", MARKED, ids=[block.place for block in MARKED])
def test_what_is_not_run_is_checked(block: Block) -> None:
    check_marked(block)
    pytest.skip(f"not run: {block.reason}")


def check_marked(block: Block) -> None:
    """Check what can be checked of a block without running it."""
    if block.language == "python":
        compile(block.code, block.place, "exec")
    else:
        check_shell_syntax(block)
        for words in seqproc_calls(block.code):
            check_options(words, options_of)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Block]]:
    """The blocks of a page of the given text."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> list[Block]:
        (tmp_path / "page.md").write_text(text)
        return blocks_of(tmp_path / "page.md")

    return write


def test_blocks_share_names_and_are_found_with_their_lines(written):
    first, second, third = written(
        "A\n```python\nx = 2\n```\n- B\n\n  ```python\n  if x:\n      y = x + 1\n  ```\n"
        "```json\n{}\n```\n"
    )
    assert [(b.line, b.language) for b in (first, second, third)] == [
        (3, "python"),
        (8, "python"),
        (12, "json"),
    ]
    names: dict[str, Any] = {}
    for block in (first, second, third):
        run(block, block.code, names)
    assert names["y"] == 3


def test_a_block_that_raises_fails_at_its_line(written):
    (block,) = written("A\n\n```python\nx = 1\ny = nowhere\n```\n")
    with pytest.raises(NameError) as failed:
        run(block, block.code, {})
    assert failed.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("seqproc sample --no-such-option 3", "has no --no-such-option"),
        ("seqproc simple --draws 3", "no command 'simple'"),
        ("seqproc status nowhere", "nowhere"),
        ("seqproc sample … --draws 3", "placeholder"),
        ("make nothing", "no target"),
        ("pip install '.[everything]'", "no such extra"),
        ("python bench/nothing.py", "no such script"),
        ("rm -r runs", "is not run by this test"),
    ],
)
def test_a_command_that_is_wrong_fails(written, command, problem):
    (block,) = written(f"```sh\n{command}\n```\n")
    with pytest.raises((AssertionError, pytest.fail.Exception), match=problem):
        run(block, block.code, {})


def test_what_is_not_run_fails_when_its_syntax_or_an_option_is_wrong(written):
    mark = "<!-- not run: it takes a cluster -->\n"
    loop, option, code = written(
        f"{mark}```sh\nfor i in 1; do\n```\n"
        f'{mark}```sh\nsbatch --wrap "seqproc merge --nothing x" &\n```\n'
        f"{mark}```python\nx = = 1\n```\n"
    )
    with pytest.raises(AssertionError, match="syntax error"):
        check_marked(loop)
    with pytest.raises(AssertionError, match="seqproc merge has no --nothing"):
        check_marked(option)
    with pytest.raises(SyntaxError):
        check_marked(code)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- not run: it takes a cluster -->\nNo block.\n",
        "<!-- not run:  -->\n```sh\nseqproc models\n```\n",
        "<!-- not run -->\n```sh\nseqproc models\n```\n",
    ],
)
def test_a_mark_needs_a_block_and_a_reason(written, text):
    with pytest.raises(ValueError, match=r"page\.md: a mark"):
        written(text)


def test_every_language_is_known():
    unknown = [b.place for bs in BLOCKS.values() for b in bs if b.language not in LANGUAGES]
    assert unknown == []


def replaced(block: Block, name: str) -> str:
    """The code of a block, with the names of small things in it."""
    code = block.code.replace("smollm2-135m", "tiny")
    for large, small in REPLACED.get(name, {}).items():
        code = code.replace(large, small)
    return code


def test_every_replacement_is_needed():
    for name, replacements in REPLACED.items():
        text = "".join(block.code for block in BLOCKS[ROOT / name] if block.reason is None)
        assert [large for large in replacements if large not in text] == [], name


def run(block: Block, code: str, names: dict[str, Any]) -> None:
    """Run one block of a page that may be run."""
    if block.language == "python":
        run_python(block, code, names)
    elif block.language == "sh":
        for command in commands(code):
            run_command(command, block.place)


def run_command(command: list[str], place: str) -> None:
    """Run a `seqproc` command made small; look up what another one names."""
    program, *words = command
    if program == "seqproc":
        assert PLACEHOLDER not in words, f"{place}: what has a placeholder is marked as not run"
        check_options(words, options_of)
        words, file = without_redirection(words)
        output = call(make_small(words, SMALL), place)
        if file is not None:
            file.write_text(output)
    elif program == "make":
        assert make_knows(words[0]), f"{place}: no target {words[0]}"
    elif program == "pip":
        assert extras_of(words) <= extras(), f"{place}: no such extra"
    elif program == "python":
        assert (ROOT / words[0]).is_file(), f"{place}: no such script"
    else:
        pytest.fail(f"{place}: {program!r} is not run by this test; mark the block as not run")


def without_redirection(words: list[str]) -> tuple[list[str], Path | None]:
    """A command without a ``> FILE`` at its end, and the file."""
    if len(words) > 2 and words[-2] == ">":
        return words[:-2], Path(words[-1])
    return words, None


def call(words: list[str], place: str) -> str:
    """Run the command line in this process; it must succeed. Returns what it printed."""
    from typer.testing import CliRunner

    from seqproc.cli.app import app

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"{place}: seqproc {' '.join(words)}\n{result.output}"
    return result.stdout


def options_of(name: str) -> set[str]:
    """The options of a command."""
    from seqproc.cli.app import app

    commands_of: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands_of, f"seqproc has no command {name!r}"
    return {option for p in commands_of[name].params for option in (*p.opts, *p.secondary_opts)}


def make_knows(target: str) -> bool:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
    return done.returncode == 0


def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def extras_of(words: list[str]) -> set[str]:
    named = [word.partition("[")[2].rstrip("]") for word in words if "[" in word]
    return {extra for group in named for extra in group.split(",")}
