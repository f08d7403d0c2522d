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


_NUM_TOKENS = 64  # that a checkpoint is tried on


def load_suspects(
    checkpoints: Sequence[str], options: ModelOptions, model: nn.Module
) -> dict[str, Suspect]:
    """Each checkpoint's parameters, held in memory, by a description.

    Raises:
        ConfigError: the model has an adapter, or a checkpoint is named twice, of another
            architecture or configuration, or holds what is no number.
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

    found = {}
    for name in checkpoints:
        parameters = _parameters(name, options, model)
        found[f"the weights of {name}"] = Suspect(parameters=partial(dict, parameters))
    return found


def _parameters(name: str, options: ModelOptions, model: nn.Module) -> dict[str, Tensor]:
    from seqproc.models import load_model

    other, _ = load_model(
        name,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    parameters = {label: tensor.detach() for label, tensor in other.named_parameters()}
    shapes, theirs = _shapes(dict(model.named_parameters())), _shapes(parameters)
    odd = sorted({label for label, _ in shapes.items() ^ theirs.items()})
    if odd:
        raise ConfigError(
            f"--suspect {name} must have the parameters of {options.model}, and {len(odd)} differ, "
            f"such as {odd[0]}: {theirs.get(odd[0], 'none')} where {shapes.get(odd[0], 'none')} "
            "is due"
        )
    wild = sorted(label for label, tensor in parameters.items() if not tensor.isfinite().all())
    if wild:
        raise ConfigError(
            f"--suspect {name} holds NaN or infinity in {len(wild)} parameters, such as {wild[0]}"
        )
    _require_same_code(name, other, options.model, model)
    return parameters


def _require_same_code(name: str, other: nn.Module, own_name: str, own: nn.Module) -> None:
    """Refuse a checkpoint whose model computes something else with the same parameters.

    Raises:
        ConfigError: naming where, and how their configurations differ.
    """
    from seqproc.models.introspection import context_length, vocab_size
    from seqproc.parity.side_by_side.layers import first_difference

    longest = context_length(getattr(own, "config", None)) or _NUM_TOKENS
    size = vocab_size(own) or _NUM_TOKENS
    ids = [i % size for i in range(min(_NUM_TOKENS, longest))]
    parameters = dict(other.named_parameters())
    found = first_difference(other, own, [ids], second_override=parameters)
    if found is not None:
        theirs, due = _fields(other), _fields(own)
        odd = sorted(key for key in theirs.keys() | due.keys() if theirs.get(key) != due.get(key))
        raise ConfigError(
            f"--suspect {name} computes something else than {own_name} does with the same "
            f"parameters, from {found.module} on, and they are scored in the latter; their "
            f"configurations differ in {', '.join(odd) or 'nothing'}. --pair with --layers shows "
            "where two models part"
        )


def _fields(model: nn.Module) -> dict[str, object]:
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return {} if to_dict is None else to_dict()


def _shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {label: tuple(tensor.shape) for label, tensor in parameters.items()}
