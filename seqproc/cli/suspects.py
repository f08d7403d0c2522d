"""`seqproc parity --suspect`: checkpoints that an engine may hold in place of the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from seqproc.cli.options import ModelOptions
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seqproc.parity.suspects import Suspect


def load_suspects(
    checkpoints: Sequence[str], options: ModelOptions, model: nn.Module
) -> dict[str, Suspect]:
    """Each checkpoint's parameters, held in memory, by a description.

    Raises:
        ConfigError: the model has an adapter, or a checkpoint is named twice or of another
            architecture.
        ModelError: one cannot be loaded.
    """
    if checkpoints and options.adapter is not None:
        raise ConfigError(
            "--suspect names whole checkpoints, and the model has an adapter: leave one out, or "
            "give check_engine the parameters in suspects"
        )
    if len(set(checkpoints)) < len(checkpoints):
        raise ConfigError("--suspect names a checkpoint twice")
    from seqproc.parity.suspects import Suspect

    own = dict(model.named_parameters())
    found = {}
    for name in checkpoints:
        parameters = _parameters(name, options, own)
        found[f"the weights of {name}"] = Suspect(parameters=partial(dict, parameters))
    return found


def _parameters(name: str, options: ModelOptions, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from seqproc.models import load_model

    other, _ = load_model(
        name,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    parameters = {label: tensor.detach() for label, tensor in other.named_parameters()}
    shapes, theirs = _shapes(own), _shapes(parameters)
    odd = sorted({label for label, _ in shapes.items() ^ theirs.items()})
    if odd:
        raise ConfigError(
            f"--suspect {name} must have the parameters of {options.model}, and {len(odd)} differ, "
            f"such as {odd[0]}: {theirs.get(odd[0], 'none')} where {shapes.get(odd[0], 'none')} "
            "is due"
        )
    return parameters


def _shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {label: tuple(tensor.shape) for label, tensor in parameters.items()}
