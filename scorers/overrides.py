"""Parameter overrides θ + η·v: mappings for `torch.func.functional_call`.

Overrides are exact: every name matches one parameter of the same shape and device, or it raises.
The model is never changed, and parameters that need neither a step nor a cast share its storage.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from seqproc.errors import OverrideError

ParamMapping = Mapping[str, Tensor]


def build_params_override(
    model: nn.Module,
    direction: ParamMapping,
    eta: float,
    *,
    dtype: torch.dtype | None = None,
    allow_frozen: bool = False,
) -> dict[str, Tensor]:
    """The full parameter mapping θ + η·v, detached.

    Args:
        model: the module whose parameters are θ; unchanged.
        direction: v by parameter name; a parameter without an entry does not move.
        eta: the step η.
        dtype: cast up to this before adding (never down); None keeps each parameter's own.
        allow_frozen: accept entries for parameters with ``requires_grad=False``.

    Returns:
        ``{name: tensor}`` for every parameter. Unmoved ones share storage when no cast is needed.

    Raises:
        OverrideError: an unknown name, another shape or device, a dtype that is not floating,
            NaN or infinity, or a frozen parameter without ``allow_frozen``.
    """
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not math.isfinite(eta):
        raise OverrideError(f"eta must be a finite number, got {eta!r}")
    direction = check_mapping(direction, dict(model.named_parameters()), canonical_names(model))
    if not allow_frozen:
        _refuse_frozen(model, direction)
    return {
        name: _step(cast_up(param.detach(), dtype), direction.get(name), eta)
        for name, param in model.named_parameters()
    }


def build_state_override(
    model: nn.Module,
    direction: ParamMapping,
    eta: float,
    *,
    param_dtype: torch.dtype | None = None,
    include_buffers: bool = False,
    buffer_dtype: torch.dtype | None = None,
    allow_frozen: bool = False,
) -> dict[str, Tensor]:
    """`build_params_override`; on request with the buffers, cast up to ``buffer_dtype``."""
    params = build_params_override(
        model, direction, eta, dtype=param_dtype, allow_frozen=allow_frozen
    )
    if not include_buffers:
        return params
    return params | {name: cast_up(b.detach(), buffer_dtype) for name, b in model.named_buffers()}


def resolve_mapping(
    model: nn.Module,
    params: ParamMapping | None,
    buffers: ParamMapping | None,
    dtypes: Iterable[torch.dtype],
) -> tuple[dict[str, Tensor], torch.dtype]:
    """The mapping that a forward runs on, and the dtype it runs at.

    Casts only go up: the forward runs at the widest of the dtypes asked for, the model's own, and
    those of the override's tensors. Nothing is cached, so an update of the model in place is
    always seen; without casts no parameter is copied.

    Args:
        model: the module; its parameters fill what the override leaves out.
        params: overriding parameters, possibly only some, or None.
        buffers: overriding buffers, or None.
        dtypes: least widths asked for by the configuration.

    Raises:
        OverrideError: see `build_params_override`.
    """
    own_params = {name: p.detach() for name, p in model.named_parameters()}
    own_buffers = {name: b.detach() for name, b in model.named_buffers()}
    state = own_params | own_buffers
    if params is not None:
        names = canonical_names(model) | {name: name for name in own_buffers}
        state |= check_mapping(params, state, names)
    if buffers is not None:
        state |= check_mapping(buffers, own_buffers, {n: n for n in own_buffers}, kind="buffer")
    width = widest([*dtypes, *(t.dtype for name, t in state.items() if name in own_params)])
    return {name: cast_up(tensor, width) for name, tensor in state.items()}, width


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest float that holds all of these."""
    width = None
    for dtype in dtypes:
        if dtype.is_floating_point:
            width = dtype if width is None else torch.promote_types(width, dtype)
    return torch.float32 if width is None else width


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
) -> dict[str, Tensor]:
    """Check every entry against the model's own tensors; return them under canonical names."""
    if not isinstance(mapping, Mapping):
        raise OverrideError(
            f"an override must map {kind} names to tensors, got {type(mapping).__name__}"
        )
    checked: dict[str, Tensor] = {}
    given: dict[str, str] = {}  # canonical name: the name it first came under
    for name, tensor in mapping.items():
        canonical = names.get(name)
        if canonical is None:
            raise OverrideError(_unknown_name(name, list(names), kind))
        _check_tensor(name, tensor, own[canonical], kind)
        first = given.setdefault(canonical, name)
        if checked.setdefault(canonical, tensor) is not tensor:
            raise OverrideError(
                f"{name!r} is tied to {first!r}: give one of them, or the same tensor for both"
            )
    return checked


def _check_tensor(name: str, tensor: object, own: Tensor, kind: str) -> None:
    if not isinstance(tensor, Tensor):
        raise OverrideError(f"{kind} {name!r}: expected a tensor, got {type(tensor).__name__}")
    if tensor.shape != own.shape:
        raise OverrideError(
            f"{kind} {name!r}: expected shape {list(own.shape)}, got {list(tensor.shape)}"
        )
    if tensor.device != own.device:
        raise OverrideError(
            f"{kind} {name!r}: expected device {own.device}, got {tensor.device}; "
            f"move it with .to({str(own.device)!r})"
        )
    if own.is_floating_point() and not tensor.is_floating_point():
        raise OverrideError(f"{kind} {name!r}: expected a floating dtype, got {tensor.dtype}")
    if tensor.is_floating_point() and not _all_finite(tensor):
        raise OverrideError(f"{kind} {name!r} holds NaN or infinity")


def _all_finite(tensor: Tensor) -> bool:
    """A finite sum says so in a fifth of the time; one that overflows has to be looked into."""
    return bool(tensor.detach().sum().isfinite()) or bool(torch.isfinite(tensor).all())


def _unknown_name(name: object, known: list[str], kind: str) -> str:
    stripped = str(name).removeprefix("module.")
    if stripped != name and stripped in known:
        hint = f"; drop the prefix 'module.' of the distributed wrapper: {stripped!r}"
    else:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"the model has no {kind} named {name!r}{hint}"


def _refuse_frozen(model: nn.Module, direction: ParamMapping) -> None:
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    moved = sorted(frozen & set(direction))
    if moved:
        raise OverrideError(
            f"the direction moves {len(moved)} frozen parameter(s), first {moved[0]!r}; "
            "pass allow_frozen=True if that is meant"
        )


def cast_up(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Cast a floating tensor up to ``dtype``; the same tensor when it is wide enough."""
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, dtype))


def _step(param: Tensor, direction: Tensor | None, eta: float) -> Tensor:
    if direction is None:
        return param
    return param + eta * direction.detach().to(torch.promote_types(param.dtype, direction.dtype))
