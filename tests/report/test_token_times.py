"""Ten thousand sequences do not freeze the page. Limits are three times what is promised."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from helpers.browser import Watched
from helpers.page_times import action_time, start_times
from helpers.token_rows import made_up, write_page


@pytest.mark.browser
@pytest.mark.slow
def test_ten_thousand_sequences_open_and_turn_in_time(page: Watched, tmp_path: Path) -> None:
    run, tokenizer = made_up(
        10_000, 100, columns=("logprobs", "logqs", "rb_entropies", "head_mass")
    )
    write_page(tmp_path / "page.html", run, tokenizer)
    view = page.open(tmp_path / "page.html")
    assert start_times(view)["list_shown"] < 3 * 3.0
    assert statistics.median(action_time(view, "turn") for _ in range(7)) < 3 * 0.1
    assert action_time(view, "search") < 10.0
    page.require_quiet()
