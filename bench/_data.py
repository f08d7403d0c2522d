"""Token sequences to score: real prompts of a chosen length, and responses the model sampled.

Knows datasets, tokenizers and `generate`; nothing of scorers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from seqproc.prompts import load_prompts
from seqproc.prompts.gsm8k import FOLDER_VARIABLE
from seqproc.scorers import TokenSequence

TEMPLATE = "Question: {}\nLet us think step by step.\nAnswer:"
RESPONSE_TOKENS = 100
_SPREAD = 0.2  # a prompt's length may be off the one asked for by this share


def sample(
    model: Any,
    tokenizer: Any,
    *,
    num_prompts: int,
    prompt_tokens: int,
    num_responses: int = 1,
    gsm8k: str | None = None,
    seed: int = 0,
) -> list[TokenSequence]:
    """Responses of 100 tokens under T = 1, top_p = 0.95, in the order [prompt][response]."""
    found = _from_gsm8k if gsm8k else _from_arithmetic
    prompts = list(islice(found(tokenizer, prompt_tokens, gsm8k), num_prompts))
    if len(prompts) < num_prompts:
        raise SystemExit(f"only {len(prompts)} prompts have about {prompt_tokens} tokens")
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    inputs = inputs.to(model.device)
    torch.manual_seed(seed)
    outputs = model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_p=0.95,
        top_k=0,
        min_new_tokens=RESPONSE_TOKENS,
        max_new_tokens=RESPONSE_TOKENS,
        num_return_sequences=num_responses,
        pad_token_id=tokenizer.pad_token_id,
    )
    outputs = outputs.cpu()
    owners = [torch.tensor(prompt) for prompt in prompts for _ in range(num_responses)]
    return [
        TokenSequence(prompt_ids=prompt, response_ids=output[-RESPONSE_TOKENS:].clone())
        for prompt, output in zip(owners, outputs, strict=True)
    ]


def random_sequences(vocabulary: int, number: int, prompt_tokens: int) -> list[TokenSequence]:
    """Random tokens, for what depends on shapes alone."""
    ids = torch.randint(
        vocabulary,
        (number, prompt_tokens + RESPONSE_TOKENS),
        generator=torch.Generator().manual_seed(0),
    )
    return [
        TokenSequence(prompt_ids=row[:prompt_tokens], response_ids=row[prompt_tokens:])
        for row in ids
    ]


def _from_gsm8k(tokenizer: Any, length: int, path: str | None) -> Iterator[list[int]]:
    """Problems whose length is about that."""
    folder = str(path).removesuffix("test.jsonl")
    for entry in load_prompts(f"gsm8k:{folder}", "test"):
        ids = tokenizer(TEMPLATE.format(entry.question)).input_ids
        if abs(len(ids) - length) <= _SPREAD * length:
            yield ids


def _from_arithmetic(tokenizer: Any, length: int, _: str | None) -> Iterator[list[int]]:
    """Problems joined until they have the length."""
    text = ""
    for entry in load_prompts("arithmetic", "train"):
        text = f"{text} {entry.question}".strip()
        ids = tokenizer(TEMPLATE.format(text)).input_ids
        if len(ids) >= length:
            yield ids
            text = ""


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is sampled, from which model and where."""
    parser.add_argument("--model", default="smollm2-135m", help="embedded name, folder or hub id")
    parser.add_argument("--device", default="cpu", help="where the model is")
    parser.add_argument("--prompt-tokens", type=int, default=90, help="about as many")
    parser.add_argument(
        "--gsm8k", default=os.environ.get(FOLDER_VARIABLE), help="folder with test.jsonl"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampled responses")
