"""The documentation has no dead links, and the check that says so can fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "check_links.py"

Check = Callable[[str], list[str]]


def run(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and printed lines of the script."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Checks a README of the given text in a small checkout; returns the dead links."""

    def write_and_run(text: str) -> list[str]:
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "guide.md").write_text("# The `guide`\n\n## Use\n\n## Use\n")
        (tmp_path / "code.py").write_text("pass\n")
        (tmp_path / "README.md").write_text(text)
        code, lines = run(str(tmp_path))
        assert code == (len(lines) > 1)
        return lines[:-1]

    return write_and_run


def test_this_checkout_has_none():
    code, lines = run()
    assert code == 0, "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/guide.md) and [a folder](docs) and ![code](code.py)",
        "[a](docs/guide.md#the-guide), [b](docs/guide.md#use) and [c](docs/guide.md#use-1)",
        "# Top\n[a](#top)",
        '<a id="here"></a>\n[a](#here)',
        "[a](code.py#L1-L3) and [a title](code.py 'what it is') and [angles](<code.py>)",
        "[a](https://example.org/x?y#z), <https://example.org> and [b](mailto:a@example.org)",
        "[a][guide] and [guide][]\n\n[guide]: docs/guide.md#use",
        "Not a link: `[a](absent.md)` and ``x[0](`absent.md`)``",
        "```\n[a](absent.md)\n```\n[a](code.py)",
        '<img src="code.py">',
    ],
)
def test_live_links(check, text):
    assert check(text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](absent.md)", "no such file"),
        ("![a](absent.png)", "no such file"),
        ('<img src="absent.png">', "no such file"),
        ("[a][b]\n\n[b]: absent.md", "no such file"),
        ("[a](docs/guide.md#install)", "no such heading"),
        ("[a](docs/guide.md#use-2)", "no such heading"),
        ("[a](#top)", "no such heading"),
        ("```\n# Top\n```\n[a](#top)", "no such heading"),
        ("[a][nowhere]", "no definition"),
        ("[a]()", "empty link"),
        ("[a](../outside.md)", "out of the checkout"),
        ("[a](/docs/guide.md)", "absolute path"),
        ("[a](https://)", "not a web address"),
        ("[a](http://[::1)", "not a web address"),
        ("<https://nohost>", "not a web address"),
        ("[a](htps://example.org)", "a scheme"),
        ("[a](code.py#top)", "not a page"),
        ("```\n```\n[a](absent.md)", "no such file"),
    ],
)
def test_dead_links(check, text, problem):
    (line,) = check(text)
    page, number, message = line.split(":", maxsplit=2)
    assert page == "README.md"
    assert text.splitlines()[int(number) - 1].strip("`") != ""
    assert problem in message


def test_a_checkout_without_pages_is_not_in_order(tmp_path):
    assert run(str(tmp_path)) == (1, ["0 pages, 0 dead links"])
