"""What pages of the documentation take for granted, and what their blocks run with in a test.

`NAMES` makes the names that a page's prose has introduced, such as ``model``. `SMALL` gives options
of the command line other values, and `REPLACED` gives a page's code other words, so that a run of
ten thousand draws of a real model takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = {
    "--draws": "8",
    "--max-new-tokens": "8",
    "--max-prompts-pool": "4",
    "--rows": "4",
    "--engine": "hf",
    "--engines": "hf",
    "--pair": "hf,scorer",
}

REPLACED: dict[str, dict[str, str]] = {
    "README.md": {'"max_new_tokens": 64': '"max_new_tokens": 8'},
    "docs/runs.md": {
        "draws=10_000": "draws=8",
        "score runs/first": "score runs/ten-thousand",
    },
    "docs/engines.md": {
        'engine="vllm", engine_options={"max_model_len": 2048}': 'engine="hf"',
        '"checkpoints/step-400"': '"tiny"',
    },
    "docs/cli.md": {
        "--out runs/first \\\n": "--engine hf --max-new-tokens 4 --out runs/first \\\n"
    },
    "docs/parity.md": {"--model ours --layers theirs": "--model tiny --layers tiny"},
}


def processor(folder: Path) -> Any:
    """A processor of the small model, with the policy that the pages of runs have."""
    from seqproc import SequenceProcessor

    generation = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 8}
    return SequenceProcessor.from_pretrained("tiny", engine="hf", config={"generation": generation})


def of_a_model(folder: Path) -> dict[str, Any]:
    """A model, its tokenizer, and the ids of one prompt and its response."""
    from seqproc import SamplingPolicy, load_model

    model, tokenizer = load_model("tiny")
    ids = tokenizer("The answer is 72, because 48 + 24 = 72.")["input_ids"]
    return {
        "model": model,
        "tokenizer": tokenizer,
        "policy": SamplingPolicy(temperature=1.0),
        "prompt_ids": ids[:5],
        "response_ids": ids[5:],
    }


def of_sequences(folder: Path) -> dict[str, Any]:
    """A processor, sequences of it, and two directions."""
    import torch

    sp = processor(folder)
    sequences = sp.generate_batched(["What is 2 + 3?", "What is 4?"], G=2, seed=0)
    directions = [{n: torch.randn_like(p) for n, p in sp.model.named_parameters()} for _ in "vw"]
    return {
        "processor": sp,
        "sp": sp,
        "sequences": sequences,
        "advantages": torch.ones(2, 2),
        "v": directions[0],
        "w": directions[1],
    }


def of_runs(folder: Path) -> dict[str, Any]:
    """A processor; and the file of a direction, for `seqproc score`."""
    from safetensors.torch import save_file

    names = of_sequences(folder)
    save_file(names["v"], folder / "v.safetensors")
    return {"processor": names["processor"]}


def of_pages(folder: Path) -> dict[str, Any]:
    """Runs in runs/first and runs/second; sequences and their scores."""
    from seqproc.runs import RunSpec, sample_run

    names = of_sequences(folder)
    for seed, run in enumerate(("runs/first", "runs/second")):
        spec = RunSpec(dataset="arithmetic", draws=8, seed=seed)
        sample_run(names["processor"], spec, run)
    results = names["sp"].teacher_force_logprobs(names["sequences"], compute_rb=True)
    return {**names, "results": results}


def of_datasets(folder: Path) -> dict[str, Any]:
    """A processor, and a dataset that takes nothing but a folder."""
    from seqproc.prompts import PromptEntry, register_dataset

    def load_mine(split: str, data_dir: str | None = None) -> list[PromptEntry]:
        return [PromptEntry(text=f"{data_dir}?", question="?", answer="5")]

    register_dataset("mine", load_mine, description="Of a folder.", splits=("train",))
    return {"sp": processor(folder)}


def of_engines(folder: Path) -> dict[str, Any]:
    """A model with another one's parameters beside it."""
    names = of_a_model(folder)
    return {**names, "params_override": dict(names["model"].named_parameters())}


def of_parity(folder: Path) -> dict[str, Any]:
    """What `check_engine` takes, and two models."""
    from seqproc.engines import Request

    names = of_engines(folder)
    sp = processor(folder)
    ids = names["prompt_ids"]
    return {
        **names,
        "scorer": sp.scorer,
        "engine": sp.engine,
        "stopping": sp.stopping,
        "requests": [Request(index=i, prompt_ids=tuple(ids), seed=i) for i in range(4)],
        "prompt_numbers": [0, 0, 0, 0],
        "previous_parameters": names["params_override"],
        "system_ids": ids[:2],
        "other_model": names["model"],
        "sequences": [[*ids, *names["response_ids"]]],
    }


NAMES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "docs/compatibility.md": of_a_model,
    "docs/models.md": of_a_model,
    "docs/scoring.md": of_sequences,
    "docs/runs.md": of_runs,
    "docs/report.md": of_pages,
    "docs/datasets.md": of_datasets,
    "docs/engines.md": of_engines,
    "docs/parity.md": of_parity,
}
