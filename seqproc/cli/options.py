"""The vocabulary of the command line: each option once, with one meaning in every command.

Options come in groups, which commands combine. An option that is not given is None and leaves the
configuration file, or the default, as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from seqproc.cli.complete import (
    dataset_specs,
    dtypes,
    engines,
    executors,
    models,
)
from seqproc.cli.config_file import use_config

THE_RUN = "The run"  # panels of help, where they are not those of a group
_FILE = "Options from a file"
_MODEL = "Embedded name (smollm2-135m), local folder or hub id."
_GIVEN = "Overrides --config."


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it computes."""

    panel: ClassVar[str] = "Model"

    model: Annotated[str, typer.Option(help=_MODEL, autocompletion=models)]
    dtype: Annotated[
        str,
        typer.Option(
            help="Dtype of the weights: float32, float64 (true float64), bfloat16, …",
            autocompletion=dtypes,
        ),
    ] = "float32"
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter, folder or hub id.")] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None
    device: Annotated[str | None, typer.Option(help="Scorer's device: cpu, cuda, cuda:N.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """The sampling policy: what log q and the entropies are of."""

    panel: ClassVar[str] = "Policy and scoring"

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file of options, and of the tables generation and precision. Options that "
            "are given win.",
            callback=use_config,
            is_eager=True,
            rich_help_panel=_FILE,
        ),
    ] = None
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print what the command would run with, as a file for --config, and do no more.",
            rich_help_panel=_FILE,
        ),
    ] = False
    temperature: Annotated[float | None, typer.Option(help=f"T > 0. {_GIVEN}")] = None
    top_p: Annotated[float | None, typer.Option(help=f"Nucleus mass in (0, 1]. {_GIVEN}")] = None
    greedy: Annotated[bool, typer.Option("--greedy", help="The most probable token, always.")] = (
        False
    )
    entropy_fp64: Annotated[
        bool, typer.Option("--entropy-fp64", help="Statistics in float64 over the same logits.")
    ] = False
    tf_batch_size: Annotated[
        int | None, typer.Option(help=f"Most sequences per scoring forward. {_GIVEN}")
    ] = None
    tf_token_budget: Annotated[
        int | None,
        typer.Option(help=f"Most tokens per scoring forward, padding included. {_GIVEN}"),
    ] = None
    tf_share_prompts: Annotated[
        bool | None,
        typer.Option(
            "--tf-share-prompts/--no-tf-share-prompts",
            help=f"Compute a prompt once for all its responses in a forward. {_GIVEN}",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResponseOptions:
    """When a response ends."""

    panel: ClassVar[str] = "Responses"

    max_new_tokens: Annotated[int | None, typer.Option(help=f"Per response. {_GIVEN}")] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Text that ends a response. Repeatable. {_GIVEN} Switched off by stop = [] there."
        ),
    ] = None
    gen_batch_size: Annotated[
        int | None, typer.Option(help=f"Sequences per batch of the hf engine. {_GIVEN}")
    ] = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions(ResponseOptions):
    """What samples, and when a response ends."""

    panel: ClassVar[str] = "Engine"

    engine: Annotated[
        str,
        typer.Option(
            help="vllm, hf, or one that an installed package announces.", autocompletion=engines
        ),
    ] = "vllm"
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Of the engine; JSON, else a string: 7 is a number, '\"7\"' is not. Repeatable.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Which draws a run makes."""

    panel: ClassVar[str] = "Draws"

    dataset: Annotated[
        str,
        typer.Option(
            help="As `seqproc datasets` lists: a name, jsonl:PATH, hf:NAME, hf:FOLDER.",
            autocompletion=dataset_specs,
        ),
    ]
    draws: Annotated[int, typer.Option(help="Number of draws: a prompt and a response each.")]
    split: Annotated[str, typer.Option(help="Dataset split.")] = "train"
    seed: Annotated[int, typer.Option(help="Run seed: the same seed gives the same draws.")] = 0
    data_dir: Annotated[
        str | None, typer.Option(help="Folder to read the dataset from, where it can be.")
    ] = None
    max_prompts_pool: Annotated[
        int | None, typer.Option(help="Draw from this many prompts of the split.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """What makes the draws of a run."""

    panel: ClassVar[str] = "Several processes"

    executor: Annotated[
        str,
        typer.Option(
            help="What makes the draws: local (this process) or ray (a cluster).",
            autocompletion=executors,
        ),
    ] = "local"
    num_workers: Annotated[int | None, typer.Option(help="Of an executor.")] = None
    num_gpus: Annotated[
        float | None, typer.Option(help="Of each worker of an executor. Default 0.")
    ] = None
    num_shards: Annotated[
        int | None,
        typer.Option(help="That an executor deals the draws out to. Default four per worker."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How a command speaks. Every command has these."""

    panel: ClassVar[str] = "Output"

    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", help="Print the result alone, on a line; warnings and errors on stderr."
        ),
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and all else on stderr.")
    ] = False
    traceback: Annotated[
        bool, typer.Option("--traceback", help="On an error, show where in the code it came up.")
    ] = False


def checked_folder(name: str) -> str:
    """The name of a run's folder, unless it is empty."""
    if not name:
        raise typer.BadParameter("the run's folder has an empty name; '.' is this folder")
    return name


RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or the URL of one.")]
Out = Annotated[
    str,
    typer.Option(
        help="The run's folder, or a URL such as s3://bucket/run: new, empty, or of the same run, "
        "which then goes on.",
        parser=checked_folder,
        metavar="PATH",
        rich_help_panel=THE_RUN,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Begin anew; what the folder holds is set aside, not deleted.",
        rich_help_panel=THE_RUN,
    ),
]
TokenColumns = Annotated[
    list[str] | None,
    typer.Option(
        help="What to keep per token, such as logqs or margin. Repeatable.", rich_help_panel=THE_RUN
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat", help="Put prompts in the model's chat template.", rich_help_panel="Draws"
    ),
]
RewardWeights = Annotated[
    str | None,
    typer.Option(
        metavar="TAG,ANSWER",
        help="What a response's <answer> block earns, and a right answer on top. Default 0.5,0.5.",
        rich_help_panel=THE_RUN,
    ),
]
