"""What ``--help`` shows at its end: examples of each command, and the exit codes."""

from __future__ import annotations

from rich.markup import escape

from seqproc.cli.exit_codes import MEANINGS

# What for, and the command; each part of it on a line.
EXAMPLES: dict[str, list[tuple[str, list[str]]]] = {
    "sample": [
        (
            "256 draws, sampled with vLLM and scored; again to go on after a stop",
            [
                "seqproc sample --model smollm2-135m --dataset arithmetic",
                "--draws 256 --top-p 0.95 --max-new-tokens 128 --out runs/first",
            ],
        ),
        (
            "what that would run with, as a file; then the same with another seed",
            [
                "seqproc sample --model smollm2-135m --dataset arithmetic",
                "--draws 256 --out runs/first --print-config > run.toml",
            ],
        ),
        ("", ["seqproc sample --config run.toml --seed 1 --out runs/second"]),
    ],
    "score": [
        (
            "responses of your own, with prompt and response on each line",
            ["seqproc score given.jsonl --model smollm2-135m --out scored"],
        ),
        (
            "the samples of a run under another policy, kept beside them",
            ["seqproc score runs/first --model smollm2-135m", "--temperature 0.7 --name cooler"],
        ),
    ],
    "merge": [
        ("two shards as one run", ["seqproc merge runs/all runs/shard-0 runs/shard-1"]),
    ],
    "report": [
        ("the run as a page, in its folder", ["seqproc report runs/first"]),
        (
            "a small page, with the tests of the engine",
            [
                "seqproc report runs/first --out first.html --no-tokens",
                "--parity parity/parity.json",
            ],
        ),
    ],
    "compare": [
        (
            "two runs on the terminal, and as a page",
            ["seqproc compare runs/first runs/second -o compare.html"],
        ),
        (
            "θ against θ + η·v, of the same draws",
            ["seqproc compare runs/first runs/first --scores-b eta-1e-6"],
        ),
    ],
    "status": [
        ("how far it is, every ten seconds", ["seqproc status runs/first --watch 10"]),
        ("its state in a word", ["seqproc status runs/first --quiet"]),
    ],
    "inspect": [
        (
            "five rows of some columns",
            ["seqproc inspect runs/first --rows 5 --columns draw,reward"],
        ),
        ("all of draw 7", ["seqproc inspect runs/first --draw 7"]),
    ],
    "verify": [
        ("read everything again", ["seqproc verify runs/first"]),
        ("for a script", ["seqproc verify runs/first --json"]),
    ],
    "parity": [
        (
            "two engines against the scorer, under two policies",
            [
                "seqproc parity --engines hf,vllm --model smollm2-135m",
                "--dataset arithmetic --draws 512 --policy 1,1 --policy 0.7,0.95",
            ],
        ),
        (
            "the distributions of two side by side",
            [
                "seqproc parity --pair hf,vllm --model smollm2-135m",
                "--dataset arithmetic --draws 64",
            ],
        ),
    ],
    "demo": [
        ("the whole of it, with vLLM", ["seqproc demo"]),
        ("without vLLM", ["seqproc demo --engine hf --draws 16"]),
    ],
    "models": [("their names alone", ["seqproc models --quiet"])],
    "datasets": [("their names alone", ["seqproc datasets --quiet"])],
    "doctor": [
        ("what is missing, and how to mend it", ["seqproc doctor"]),
        ("for a script", ["seqproc doctor --json"]),
    ],
}


def examples_of(command: str) -> str | None:
    """The end of a command's help, as markup; None where it has no examples."""
    if command not in EXAMPLES:
        return None
    lines = ["[bold]Examples[/]"]
    for purpose, parts in EXAMPLES[command]:
        if purpose:
            lines.append(f"[dim]# {escape(purpose)}[/]")
        lines.append(escape(" \\\n    ".join(parts)))
    return "\n".join(lines)


def exit_codes() -> str:
    """The end of the main help, as markup."""
    lines = [f"{code:>4}  {escape(meaning)}" for code, meaning in MEANINGS.items()]
    return "\n".join(["[bold]Exit codes[/]", *lines])
