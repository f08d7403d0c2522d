"""`seqproc score`: score sequences that are given, and keep the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seqproc.cli.build import build_processor
from seqproc.cli.manner import give_result
from seqproc.cli.options import (
    Chat,
    Fresh,
    ModelOptions,
    PolicyOptions,
    RewardWeights,
    TokenColumns,
    checked_folder,
)
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from seqproc.runs import RunResult

Source = Annotated[
    str,
    typer.Argument(
        help="A run's folder, or a file of JSON lines with prompt or prompt_ids, and response or "
        "response_ids; optionally answer."
    ),
]

ScoredOut = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        parser=checked_folder,
        help="A folder for the scores and their sequences, as of a run.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="Keep the scores beside the samples of the run, under this name."),
]
Override = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Parameters as safetensors: with --eta a direction v, to score at θ + η·v; without it "
        "in the place of the model's own.",
    ),
]
Eta = Annotated[float | None, typer.Option(help="The step η along --override.")]


def score(
    source: Source,
    model: ModelOptions,
    policy: PolicyOptions,
    out: ScoredOut = None,
    name: Name = None,
    override: Override = None,
    eta: Eta = None,
    chat: Chat = False,
    reward_weights: RewardWeights = None,
    token_column: TokenColumns = None,
    fresh: Fresh = False,
) -> None:
    """Score given sequences under a model and a policy, and keep the rows.

    With --out in a folder of their own; with --name beside the samples of a run.
    """
    if (out is None) == (name is None):
        raise ConfigError(
            "give --out FOLDER to keep the scores in a folder of their own, or --name NAME to keep "
            "them beside the samples of the run"
        )
    if name is not None:
        _score_beside(source, name, model, policy, override, eta, token_column)
        return
    if override is not None or eta is not None:
        raise ConfigError("--override and --eta go with --name")
    assert out is not None
    from seqproc.cli.run_summary import end_run
    from seqproc.runs import DEFAULT_TOKEN_COLUMNS, score_run
    from seqproc.runs.opening import require_ready

    require_ready(out)
    with build_processor(model, policy, reward_weights=reward_weights) as processor:
        result = score_run(
            processor,
            source,
            out,
            chat=chat,
            token_columns=token_column or DEFAULT_TOKEN_COLUMNS,
            fresh=fresh,
        )
    _tell_other_policy(result)
    end_run(result)


def _score_beside(
    source: str,
    name: str,
    model: ModelOptions,
    policy: PolicyOptions,
    override: str | None,
    eta: float | None,
    token_columns: list[str] | None,
) -> None:
    """Keep scores beside the samples of a run."""
    from seqproc.cli.display import console, printable
    from seqproc.runs import DEFAULT_TOKEN_COLUMNS, add_scores

    with build_processor(model, policy) as processor:
        found = add_scores(
            processor,
            source,
            name,
            override=override,
            eta=eta,
            token_columns=token_columns or DEFAULT_TOKEN_COLUMNS,
        )
    give_result(
        {
            "run": source,
            "name": name,
            "num_draws_done": found.num_draws_done,
            "failed": list(found.failed),
        },
        name,
    )
    opened = f"open_run({source!r}).scores({name!r})"
    console().print(
        f"{found.num_draws_done} draws are scored, {len(found.failed)} cannot be. To open the "
        f"scores in Python:\n\n    {printable(opened)}"
    )


def _tell_other_policy(result: RunResult) -> None:
    """Say so when a run was scored under another policy than it was sampled from."""
    from seqproc.cli.display import console, printable

    sampled = result.manifest.spec.get("run", {}).get("policy", result.manifest.policy)
    if sampled != result.manifest.policy:
        console().print(
            f"Note: the run was sampled from {printable(_policy(sampled))}, and scored here under "
            f"{printable(_policy(result.manifest.policy))}."
        )


def _policy(values: object) -> str:
    assert isinstance(values, dict)
    return ", ".join(f"{name}={value}" for name, value in values.items())
