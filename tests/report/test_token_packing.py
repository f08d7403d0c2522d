"""Numbers of tokens reach the page as the run's rows have them, to six digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given as drawn
from hypothesis import strategies

from helpers.run_folders import Maker
from helpers.token_rows import Rows, given, read
from seqproc.errors import ConfigError, RunError
from seqproc.report.tokens import token_view
from seqproc.report.tokens.packing import as_shown, block, six_digits
from seqproc.report.tokens.rows import chunks
from seqproc.report.tokens.statistics import Scales, statistics_of
from seqproc.runs import RunSpec, open_run
from seqproc.runs.format.schema import TOKEN_COLUMNS, rows_schema


def same_digits(packed: Any, values: Any) -> None:
    assert [f"{float(one):.6g}" for one in packed] == [f"{one:.6g}" for one in values]


HARD = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 5e-324, 1.7e308, -3.2e38, 999999.5, 99999.95]
HARD += [0.001953125, 100000.5, 100001.5, -2.5e-7, 1 / 3, 1e30, 1e-30, 9.9999949999999e-5, 123456.5]


@pytest.mark.parametrize("value", HARD)
def test_hard_numbers_keep_their_six_digits(value: float) -> None:
    same_digits(six_digits(np.array([value])), [value])
    same_digits(as_shown(np.array([value, 1.0])), [value, 1.0])


@drawn(strategies.lists(strategies.floats(width=64), max_size=20))
def test_any_number_keeps_its_six_digits(values: list[float]) -> None:
    same_digits(as_shown(np.array(values, dtype=np.float64)), values)


def test_ordinary_numbers_take_four_bytes_and_extreme_ones_eight() -> None:
    assert as_shown(np.array([-1.5, 1e-30, np.inf, np.nan])).dtype == np.float32
    assert as_shown(np.array([-1.5, 1e-300])).dtype == np.float64
    plain = np.array([0.30000004, 2.0000005]).astype(np.float32)  # what is not rounded first
    assert f"{plain[1]:.6g}" == f"{2.0000005:.6g}"


def test_a_block_cannot_be_ended_by_what_it_holds() -> None:
    hostile = "</script><script>alert(1)</script>\ud800\0"
    text = block("x", {"texts": [hostile]}, {"n": np.arange(3, dtype=np.uint32)})
    assert text.count("<") == 2
    header, arrays = read(text, "x")
    assert header["texts"] == [hostile]
    assert arrays["n"].tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Maker, Path]:
    maker, path = Maker(), tmp_path_factory.mktemp("runs") / "complete"
    spec = RunSpec(dataset="arithmetic", draws=130, seed=5)
    maker.complete(path, spec, token_columns=TOKEN_COLUMNS)
    return maker, path


def test_each_number_is_that_of_the_parquet_row(made: tuple[Maker, Path]) -> None:
    maker, path = made
    run = open_run(path)
    data = token_view(run, tokenizer=maker.tokenizer).data
    rows = run.rows().to_pylist()
    header, draws = read(data, "draws")
    assert header["rows"] == header["run_rows"] == len(rows)
    assert header["seed"] == [str(row["seed"]) for row in rows]
    assert header["finish_reason"] == [row["finish_reason"] for row in rows]
    for column in ("draw", "reward", "sequence_logq", "rb_entropy_mean", "gen_len"):
        same_digits(draws[column], [row[column] for row in rows])
    assert len(header["starts"]) > 1
    for number, start in enumerate(header["starts"]):
        _check_chunk(data, number, rows[start:][: _length(header, number)])


def _length(header: Any, number: int) -> int:
    return [*header["starts"], header["rows"]][number + 1] - header["starts"][number]


def _check_chunk(data: str, number: int, rows: list[Any]) -> None:
    texts, _ = read(data, f"texts-{number}")
    assert texts["prompt"] == [row["prompt_text"] for row in rows]
    assert texts["response"] == [row["response_text"] for row in rows]
    numbers, arrays = read(data, f"numbers-{number}")
    assert numbers["lengths"] == [row["gen_len"] for row in rows]
    assert arrays["response_ids"].tolist() == [i for row in rows for i in row["response_ids"]]
    for name in TOKEN_COLUMNS:
        assert arrays[name].dtype == np.float32
        same_digits(arrays[name], [value for row in rows for value in row[name]])


def test_draws_without_a_column_are_named_and_infinities_stay() -> None:
    rows = [given(draw, "abc", [1, 2, 3]) for draw in range(3)]
    rows[0]["logqs"] = [-1.0, -np.inf, np.nan]
    rows[0]["engine_logqs"] = [-1.25, -np.inf, -2.0]
    rows[1]["engine_logqs"] = rows[1]["eos_prob"] = None
    data = token_view(_run(rows), tokenizer=None).data
    numbers, arrays = read(data, "numbers-0")
    assert numbers["missing"] == {"engine_logqs": [1], "eos_prob": [1], "engine_delta": [1]}
    assert arrays["logqs"][:2].tolist() == [-1.0, -np.inf]
    assert arrays["engine_delta"][0] == -0.25
    assert np.isnan(arrays["engine_delta"][1:6]).all()
    assert arrays["engine_delta"][6:].tolist() == [0.0, 0.0, 0.0]
    header, _ = read(data, "draws")
    assert "engine_delta" in [one["name"] for one in header["statistics"]]


def test_only_what_the_run_has_is_offered() -> None:
    rows = [given(draw, "abc", [1, 2, 3], ("logprobs", "renyi2")) for draw in range(3)]
    for row in rows:
        row["engine_logqs"] = None
    header, _ = read(token_view(_run(rows, ("logprobs", "renyi2")), tokenizer=None).data, "draws")
    assert [one["name"] for one in header["statistics"]] == ["surprisal", "renyi2"]
    assert [one["name"] for one in header["token_columns"]] == ["logprobs", "renyi2"]
    assert header["token_columns"][1]["unit"] == "nats per token: -log sum of q squared"


def test_a_limit_takes_the_first_rows() -> None:
    run = _run([given(draw, "abc", [1, 2, 3]) for draw in range(230)])
    header, draws = read(token_view(run, 120, None).data, "draws")
    assert (header["rows"], header["run_rows"]) == (120, 230)
    assert draws["draw"].tolist() == list(range(120))
    assert [len(batch) for batch in chunks(run, 100)] == [100]
    with pytest.raises(ConfigError, match="limit must be an integer >= 1"):
        token_view(run, 0)


def test_a_run_without_rows_has_a_view() -> None:
    header, arrays = read(token_view(_run([]), tokenizer=None).data, "draws")
    assert (header["rows"], arrays, header["statistics"]) == (0, {}, [])


def test_rows_whose_numbers_do_not_match_their_tokens_are_refused() -> None:
    row = given(0, "abc", [1, 2, 3])
    row["margin"] = [1.0]
    with pytest.raises(RunError, match="another number of margin"):
        token_view(_run([row]), tokenizer=None)


def test_scales_end_where_a_hundredth_of_the_numbers_lies_beyond() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    scales = Scales()
    scales.add(
        {"logprobs": np.append(values, -np.inf), "engine_delta": values, "margin": values * 0}
    )
    known = {one["name"]: one for one in scales.describe(statistics_of(scales_of()))}
    ordered = np.sort(-values)
    assert ordered[8] < known["surprisal"]["low"] < ordered[11]
    assert ordered[-12] < known["surprisal"]["high"] < ordered[-9]
    assert known["engine_delta"]["low"] == -known["engine_delta"]["high"]
    assert (np.abs(values) > known["engine_delta"]["high"]).sum() == 10
    assert (known["margin"]["low"], known["margin"]["high"]) == (-0.5, 0.5)
    assert (known["head_mass"]["low"], known["head_mass"]["high"]) == (0.0, 1.0)


def scales_of() -> list[str]:
    return ["logprobs", "engine_delta", "margin", "head_mass"]


def _run(rows: list[Any], columns: tuple[str, ...] = TOKEN_COLUMNS) -> Any:
    return Rows(pa.Table.from_pylist(rows, schema=rows_schema(columns)))
