"""Small runs for tests that look at folders: made with a scripted engine and a tiny model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import LlamaConfig

from helpers.tiny import byte_tokenizer, random_model
from seqproc import SequenceProcessor
from seqproc.engines import Request, ScriptedEngine
from seqproc.errors import ScoringError
from seqproc.runs import RunSpec, sample_run
from seqproc.runs.format.parts import FOOTER

FIELDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CONFIG = {"generation": {"max_new_tokens": 6, "top_p": 0.9}}
DRAWS = 24
CHUNK = 8
SPEC = RunSpec(dataset="arithmetic", draws=DRAWS, seed=5)


class Scripted(ScriptedEngine):
    """Raises an error at one draw, as often as it is told."""

    def __init__(self, tokenizer: Any, at: int | None, error: Callable[[], BaseException]) -> None:
        super().__init__(lambda request: _words(request, tokenizer.eos_token_id), tokenizer)
        self._at, self._error = at, error

    def _complete(self, request: Request, stopping: Any) -> Any:
        if request.index == self._at:
            raise self._error()
        return super()._complete(request, stopping)


def _words(request: Request, eos: int) -> list[int]:
    """One to five tokens, and an EOS."""
    rng = np.random.default_rng(request.seed)
    return [*rng.integers(2, 250, size=rng.integers(1, 6)).tolist(), eos]


class Unscorable(SequenceProcessor):
    """Cannot score the sequence of one seed."""

    failing: int

    def teacher_force_logprobs_with_diagnostics(  # type: ignore[override]
        self, batch: Any, **options: Any
    ) -> Any:
        if [self.failing] in batch.seeds:
            raise ScoringError("not a number")
        return super().teacher_force_logprobs_with_diagnostics(batch, **options)


class Maker:
    """Makes runs of one tiny model."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()
        self.model = random_model(LlamaConfig, self.tokenizer, 0, FIELDS)

    def processor(
        self, at: int | None = None, error: Callable[[], BaseException] = KeyboardInterrupt
    ) -> SequenceProcessor:
        engine = Scripted(self.tokenizer, at, error)
        return SequenceProcessor(self.model, self.tokenizer, config=CONFIG, engine=engine)

    def unscorable(self, seed: int, at: int | None = None) -> SequenceProcessor:
        engine = Scripted(self.tokenizer, at, KeyboardInterrupt)
        processor = Unscorable(self.model, self.tokenizer, config=CONFIG, engine=engine)
        processor.failing = seed
        return processor

    def complete(self, path: Path | str, spec: RunSpec = SPEC, **options: Any) -> Any:
        return sample_run(self.processor(), spec, path, chunk_size=CHUNK, **options)

    def stopped(self, path: Path | str, at: int = 20, spec: RunSpec = SPEC, **options: Any) -> None:
        """Ctrl-C at a draw."""
        try:
            sample_run(self.processor(at), spec, path, chunk_size=CHUNK, **options)
        except KeyboardInterrupt:
            return
        raise AssertionError("the run was not stopped")


def edit(file: Path, **changes: Any) -> None:
    """Change the values of a file of JSON; a dot in a name stands for __."""
    values = json.loads(file.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = values
        for part in outer:
            place = place[part]
        place[last] = value
    file.write_text(json.dumps(values))


def rewrite(
    path: Path, name: str, change: Callable[[pa.Table], pa.Table], key: str | None = None
) -> None:
    """Change the rows of a part, and its note along with them."""
    table = change(pq.read_table(path / f"{name}.parquet"))
    if key is not None:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), FOOTER: key})
    pq.write_table(table, path / f"{name}.parquet")
    content = (path / f"{name}.parquet").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    edit(path / f"{name}.json", sha256=digest, size=len(content))


def with_column(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[..., pa.Table]:
    """A change of the values of one column, for `rewrite`."""

    def changed(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        values = pa.array(change(table[name].to_pylist()), field.type)
        return table.set_column(table.schema.get_field_index(name), field, values)

    return changed
