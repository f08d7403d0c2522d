"""`seqproc score`: score sequences that are given, and keep the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seqproc.cli.build import build_processor
from seqproc.cli.options import Chat, ModelOptions, Out, PolicyOptions, RewardWeights

if TYPE_CHECKING:
    from seqproc.runs import RunResult

Source = Annotated[
    str,
    typer.Argument(
        help="A run's folder, or a file of JSON lines with prompt or prompt_ids, and response or "
        "response_ids; optionally answer."
    ),
]


def score(
    source: Source,
    model: ModelOptions,
    policy: PolicyOptions,
    out: Out,
    chat: Chat = False,
    reward_weights: RewardWeights = None,
) -> None:
    """Score given sequences under a model and a policy, and keep the rows."""
    from seqproc.cli.report import print_result
    from seqproc.runs import require_free, score_run

    require_free(out)
    with build_processor(model, policy, reward_weights=reward_weights) as processor:
        result = score_run(processor, source, out, chat=chat)
    print_result(result)
    _tell_other_policy(result)


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
