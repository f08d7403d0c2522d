"""Runs for tests of pages, sampled from a tiny model, and scored at shifted parameters too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import save_file
from transformers import LlamaConfig

from helpers.run_folders import FIELDS
from helpers.tiny import byte_tokenizer, random_model
from seqproc import SequenceProcessor
from seqproc.runs import RunSpec, add_scores, sample_run

COLUMNS = ("logprobs", "logqs", "rb_entropies", "head_mass", "cut_margin")
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "{{ 7 * 7 }} &lt;b&gt; \u202edesrever\u202c \x00 \x1b[31m",
    "]]> --> <!-- <a href=javascript:alert(3)>x</a>",
)
ETA = 0.02


def sampled(
    folder: Path,
    draws: int = 40,
    columns: tuple[str, ...] = COLUMNS,
    dataset: str = "arithmetic",
    **generation: Any,
) -> Path:
    """A run that the hf engine sampled from a tiny random model; its tokens are in the support."""
    tokenizer = byte_tokenizer()
    model = random_model(LlamaConfig, tokenizer, 0, FIELDS)
    config = {"max_new_tokens": 12, "top_p": 0.9, **generation}
    with SequenceProcessor(
        model, tokenizer, engine="hf", config={"generation": config}
    ) as processor:
        spec = RunSpec(dataset=dataset, draws=draws, seed=5)
        sample_run(processor, spec, folder, token_columns=columns)
    return folder


def shifted(
    folder: Path,
    name: str,
    columns: tuple[str, ...] = ("logqs",),
    eta: float = ETA,
    **generation: Any,
) -> None:
    """Score a run of `sampled` once more, at θ + η·v for a v that is θ's own first matrix."""
    tokenizer = byte_tokenizer()
    model = random_model(LlamaConfig, tokenizer, 0, FIELDS)
    direction = {"lm_head.weight": model.lm_head.weight.detach().clone()}
    file = folder.parent / "v.safetensors"
    save_file(direction, file)
    config = {"generation": {"max_new_tokens": 12, "top_p": 0.9, **generation}}
    with SequenceProcessor(model, tokenizer, config=config) as processor:
        add_scores(processor, folder, name, override=file, eta=eta, token_columns=columns)


def hostile_prompts(file: Path) -> str:
    """A dataset of prompts that would do something if a page let them."""
    rows = [{"prompt": text, "question": text, "answer": text} for text in HOSTILE]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{file}"


def rows_of(folder: Path, scores: str = "policy") -> list[dict[str, Any]]:
    """Samples and scores of a complete run, read by pyarrow alone, in the order of the draws."""
    found: dict[int, dict[str, Any]] = {}
    for table in ("samples", f"scores/{scores}"):
        for file in sorted((folder / table).glob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                found.setdefault(row["draw"], {}).update(row)
    return [found[draw] for draw in sorted(found)]
