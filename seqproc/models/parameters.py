"""Mappings from the names of a model's parameters to tensors: checked against the model.

Overrides of a scorer and replacement weights of an engine are such mappings. Every name must match
one parameter of the same shape, or an error says what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seqproc._util.isolation import in_turn
from seqproc.errors import OverrideError, did_you_mean

ParamMapping = Mapping[str, Tensor]

# Narrower ones have neither sums nor promotion in torch.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@in_turn()
def own_parameters(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's parameters by name, and their `canonical_names`."""
    return dict(model.named_parameters()), canonical_names(model)


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter, tied aliases too, to the one that ``named_parameters`` gives."""
    first = {id(param): name for name, param in model.named_parameters()}
    return {
        name: first[id(param)] for name, param in model.named_parameters(remove_duplicate=False)
    }


def check_mapping(
    mapping: ParamMapping,
    own: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    kind: str = "parameter",
    are_values: bool = False,
) -> dict[str, Tensor]:
    """Check every entry against the model's own tensors.

    Args:
        mapping: what to check.
        own: the model's tensors, by canonical name.
        names: canonical name of every name that there is.
        kind: what the tensors are called in an error.
        are_values: entries stand for the model's tensors, and may be infinite as these are; a
            direction has to be finite.

    Returns:
        The entries under canonical names, on the devices of the model's own tensors.

    Raises:
        OverrideError: an unknown name, another shape or kind of number, a tensor that is not dense,
            NaN or infinity, or two tensors for parameters that are tied.
    """
    if not isinstance(mapping, Mapping):
        raise OverrideError(
            f"an override must map {kind} names to tensors, got {type(mapping).__name__}"
        )
    checked: dict[str, Tensor] = {}
    given: dict[str, tuple[str, object]] = {}  # canonical name: what first came for it
    for name, tensor in mapping.items():
        canonical = names.get(name)
        if canonical is None:
            raise OverrideError(_unknown_name(name, list(names), kind))
        first, its_tensor = given.setdefault(canonical, (name, tensor))
        if its_tensor is not tensor:
            raise OverrideError(
                f"{name!r} is tied to {first!r}: give one of them, or the same tensor for both"
            )
        checked[canonical] = _fitted(f"{kind} {name!r}", tensor, own[canonical], are_values)
    return checked


def _fitted(label: str, tensor: object, own: Tensor, is_value: bool) -> Tensor:
    """The tensor on the device of the model's own, if it can stand beside it."""
    if not isinstance(tensor, Tensor):
        raise OverrideError(f"{label}: expected a tensor, got {type(tensor).__name__}")
    _require_plain(label, tensor)
    if tensor.shape != own.shape:
        raise OverrideError(f"{label}: expected shape {list(own.shape)}, got {list(tensor.shape)}")
    _require_dtype(label, tensor, own)
    if tensor.is_meta and not own.is_meta:
        raise OverrideError(f"{label}: expected a tensor with data, got one on the device 'meta'")
    if tensor.is_floating_point() and not tensor.is_meta:
        _require_finite(label, tensor.detach(), own.detach() if is_value else None)
    return tensor.to(own.device)


def _require_plain(label: str, tensor: Tensor) -> None:
    if tensor.is_nested or tensor.layout != torch.strided:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise OverrideError(f"{label}: expected a dense tensor, got {layout}; use .to_dense()")
    if tensor.is_quantized:
        raise OverrideError(
            f"{label}: expected plain numbers, got {tensor.dtype}; .dequantize() it"
        )


def _require_dtype(label: str, tensor: Tensor, own: Tensor) -> None:
    if own.is_floating_point() and tensor.dtype not in _DTYPES:
        raise OverrideError(
            f"{label}: expected a floating dtype of 16 bits or more, got {tensor.dtype}"
        )
    of_a_kind = (tensor.is_floating_point(), tensor.is_complex()) == (
        own.is_floating_point(),
        own.is_complex(),
    )
    if not of_a_kind:
        raise OverrideError(f"{label}: expected {own.dtype}, got {tensor.dtype}")


def _require_finite(label: str, tensor: Tensor, own: Tensor | None) -> None:
    """A finite sum says so in a fifth of the time; one that is not has to be looked into."""
    if bool(tensor.sum().isfinite()):
        return
    wrong, exempt = ~torch.isfinite(tensor), ""
    if own is not None and not own.is_meta:
        wrong &= tensor != own.to(tensor.device)  # NaN differs from itself
        exempt = " where the model's own is not the same infinity"
    if bool(wrong.any()):
        number = int(wrong.sum())
        raise OverrideError(
            f"{label} holds NaN or infinity in {number} of {wrong.numel()} entries{exempt}"
        )


def _unknown_name(name: object, known: list[str], kind: str) -> str:
    stripped = str(name).removeprefix("module.")
    if stripped != name and stripped in known:
        hint = f"; drop the prefix 'module.' of the distributed wrapper: {stripped!r}"
    else:
        hint = did_you_mean(name, known) or f"; model.named_{kind}s() lists the names"
    return f"the model has no {kind} named {name!r}{hint}"
