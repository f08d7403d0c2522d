"""Prompts and their gold answers, from registered datasets, files and the hub.

Knows nothing of models or engines. Built in: `arithmetic` (generated), `gsm8k` and
`gsm8k_r1_template`, `jsonl:PATH` and `hf:NAME`.
"""

from seqproc.prompts import arithmetic, files, gsm8k  # noqa: F401  (each registers its datasets)
from seqproc.prompts.draws import choose_prompts, draw_seed, replacement_indices
from seqproc.prompts.entry import PromptEntry
from seqproc.prompts.registry import (
    DatasetInfo,
    dataset_names,
    describe_datasets,
    load_prompts,
    register_dataset,
)
from seqproc.prompts.templates import R1_TEMPLATE, r1_prompt

__all__ = [
    "R1_TEMPLATE",
    "DatasetInfo",
    "PromptEntry",
    "choose_prompts",
    "dataset_names",
    "describe_datasets",
    "draw_seed",
    "load_prompts",
    "r1_prompt",
    "register_dataset",
    "replacement_indices",
]
