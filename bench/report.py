"""Benchmark of a run's page: how long its token view takes to make, to open and to go through.

    python bench/report.py [--draws 10000] [--length 100] [--repeats 5]

Draws are made up, of geometric lengths about a mean. Measured in Chromium, by the page's clock:

- first paint, and list shown: from the navigation, each in a browser's context of its own.
- turn: to the next page of the list, until it is painted; sort and search: the first ones.

Needs playwright and a Chromium. Prints a table, and then one line of JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _measuring import Row
from _report import json_line, table
from rich.console import Console

TURNS = 20
COLUMNS = ("logprobs", "logqs", "rb_entropies", "head_mass")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; playwright's."""
    from playwright.sync_api import sync_playwright

    from helpers.browser import find_chromium

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def measure(path: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of everything that is done to a page, by name."""
    from helpers.browser import Watched
    from helpers.page_times import action_time, start_times

    seconds: dict[str, list[float]] = {}
    with chromium() as browser:
        for _ in range(repeats):
            context = browser.new_context(offline=True)
            view = Watched(context.new_page()).open(path)
            for name, value in start_times(view).items():
                seconds.setdefault(name, []).append(value)
            for _ in range(TURNS):
                seconds.setdefault("turn", []).append(action_time(view, "turn"))
            for name in ("sort", "search"):
                seconds.setdefault(name, []).append(action_time(view, name))
            context.close()
    return seconds


def main() -> None:
    """Measure, show, and end with one line of JSON."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.token_rows import made_up, write_page

    options, console = parse(), Console(width=120)
    run, tokenizer = made_up(options.draws, options.length, columns=COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "page.html", time.perf_counter()
        write_page(path, run, tokenizer)
        making = time.perf_counter() - start
        seconds = {"make": [making]} | measure(path, options.repeats)
        size = path.stat().st_size
    rows = [_row(name, own) for name, own in seconds.items()]
    rows[0].values["page MB"] = size / 1e6
    console.print(table(f"{options.draws} draws of {options.length} tokens", rows))
    print(json_line(vars(options), rows))


def _row(name: str, seconds: list[float]) -> Row:
    return Row(
        part="token view",
        name=name,
        seconds=[round(s, 4) for s in seconds],
        median_s=statistics.median(seconds),
        min_s=min(seconds),
        max_s=max(seconds),
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=100, help="mean tokens of a response")
    parser.add_argument("--repeats", type=int, default=5, help="times that the page is opened")
    return parser.parse_args()


if __name__ == "__main__":
    main()
