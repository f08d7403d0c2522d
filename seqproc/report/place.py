"""Where a page may be written: never over a file that is not a page."""

from __future__ import annotations

from pathlib import Path

from seqproc.errors import ConfigError

_BEGINNING = b"<!doctype html"  # of every page, in any case


def require_place(page: Path) -> None:
    """Refuse a page that cannot be written, or would take the place of something else.

    Args:
        page: its file; an earlier page there is replaced, and a link is replaced by the page.

    Raises:
        ConfigError: it is a folder, a device or a file that is no page, or lies in no folder.
    """
    if page.is_dir():
        raise ConfigError(f"the page must be a file, and {page} is a folder: try {page}/page.html")
    if not page.parent.is_dir():
        wrong = "is a file" if page.parent.exists() else "is not there: make it first"
        raise ConfigError(f"the page {page} lies in a folder that {wrong}")
    if page.exists() and not _is_page(page):
        raise ConfigError(
            f"{page} is there and is no page: it is not replaced; name another file, or remove it"
        )


def _is_page(path: Path) -> bool:
    """Whether a file is a page, or empty."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            beginning = file.read(64).lstrip().lower()
    except OSError:
        return False
    return not beginning or beginning.startswith(_BEGINNING)
