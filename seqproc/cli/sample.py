"""`seqproc sample`: sample, score and reward draws of a dataset, and keep them."""

from __future__ import annotations

from typing import Annotated

import typer

from seqproc.cli.build import build_processor
from seqproc.cli.complete import when_scored
from seqproc.cli.options import (
    THE_RUN,
    Chat,
    DrawOptions,
    EngineOptions,
    ExecutorOptions,
    Fresh,
    ModelOptions,
    Out,
    PolicyOptions,
    RewardWeights,
    TokenColumns,
)

Score = Annotated[
    str,
    typer.Option(
        help="When draws are scored: now (as they are committed), later (when all are sampled), "
        "overlap (beside the sampling, in a thread) or auto (later where the engine sleeps, else "
        "now).",
        autocompletion=when_scored,
        rich_help_panel=THE_RUN,
    ),
]
RetryQuarantined = Annotated[
    bool,
    typer.Option(
        "--retry-quarantined",
        help="Try draws again that always failed before.",
        rich_help_panel=THE_RUN,
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:PROJECT]",
        help="Tell an experiment tracker how the run goes: trackio, wandb or mlflow.",
        rich_help_panel=THE_RUN,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Make shard I of N only, counted from 0: the draws d with d mod N = I. "
        "`seqproc merge` makes one run of all N.",
        rich_help_panel=ExecutorOptions.panel,
    ),
]


def sample(
    model: ModelOptions,
    draw: DrawOptions,
    policy: PolicyOptions,
    engine: EngineOptions,
    executor: ExecutorOptions,
    out: Out,
    chat: Chat = False,
    reward_weights: RewardWeights = None,
    shard: ShardOption = None,
    score: Score = "auto",
    token_column: TokenColumns = None,
    fresh: Fresh = False,
    retry_quarantined: RetryQuarantined = False,
    track: Track = None,
) -> None:
    """Sample independent draws of a dataset, score every token, and keep the rows.

    The same command goes on where a run was stopped, whatever stopped it.
    """
    from seqproc.cli.run_summary import end_run
    from seqproc.runs import DEFAULT_TOKEN_COLUMNS, RunSpec, sample_run
    from seqproc.runs.opening import require_ready
    from seqproc.runs.shards.shard import parse_shard
    from seqproc.runs.watch.tracking import require_tracker

    # Before a model is opened for nothing.
    require_ready(out, with_shards=executor.executor != "local")
    require_tracker(track)
    spec = RunSpec(
        **vars(draw),
        model=model.model,
        adapter=model.adapter,
        revision=model.revision,
        chat=chat,
        shard=None if shard is None else parse_shard(shard),
    )
    with build_processor(model, policy, engine, reward_weights=reward_weights) as processor:
        result = sample_run(
            processor,
            spec,
            out,
            score=score,  # type: ignore[arg-type]
            token_columns=token_column or DEFAULT_TOKEN_COLUMNS,
            fresh=fresh,
            retry_quarantined=retry_quarantined,
            track=track,
            **vars(executor),
        )
    end_run(result)
