"""`seqproc sample`: sample, score and reward draws of a dataset, and keep them."""

from __future__ import annotations

from seqproc.cli.build import build_processor
from seqproc.cli.options import (
    Chat,
    DrawOptions,
    EngineOptions,
    ModelOptions,
    Out,
    PolicyOptions,
    RewardWeights,
)


def sample(
    model: ModelOptions,
    draw: DrawOptions,
    policy: PolicyOptions,
    engine: EngineOptions,
    out: Out,
    chat: Chat = False,
    reward_weights: RewardWeights = None,
) -> None:
    """Sample independent draws of a dataset, score every token, and keep the rows."""
    from seqproc.cli.report import print_result
    from seqproc.runs import RunSpec, require_free, sample_run

    require_free(out)  # before a model is opened for nothing
    spec = RunSpec(
        **vars(draw),
        model=model.model,
        adapter=model.adapter,
        revision=model.revision,
        chat=chat,
    )
    with build_processor(model, policy, engine, reward_weights=reward_weights) as processor:
        result = sample_run(processor, spec, out)
    print_result(result)
