"""Parameter overrides θ + η·v: mappings for `torch.func.functional_call`.

Overrides are exact: every name matches one parameter of the same shape, or it raises. Tensors on
another device than the model are moved there. The model is never changed, and parameters that need
neither a step nor a cast share its storage.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from seqproc._util.isolation import in_turn
from seqproc._util.tensor_arguments import require_dtype
from seqproc.config import require_flag
from seqproc.errors import OverrideError
from seqproc.models.parameters import ParamMapping, canonical_names, check_mapping

_LARGE_STEP = 1e3  # beyond, a sum is looked at before it is scored


@in_turn()
def build_params_override(
    model: nn.Module,
    direction: ParamMapping | None,
    eta: float,
    *,
    dtype: torch.dtype | None = None,
    allow_frozen: bool = False,
) -> dict[str, Tensor]:
    """The full parameter mapping θ + η·v, detached.

    Args:
        model: the module whose parameters are θ; unchanged.
        direction: v by parameter name, on any device; a parameter without an entry does not move,
            and with None or an empty mapping none does.
        eta: the step η.
        dtype: cast up to this before adding (never down); None keeps each parameter's own.
        allow_frozen: accept entries for parameters with ``requires_grad=False``.

    Returns:
        ``{name: tensor}`` for every parameter. Unmoved ones share storage when no cast is needed.

    Raises:
        OverrideError: an unknown name, another shape, a dtype that is not floating, a sparse
            tensor, NaN or infinity, or a frozen parameter without ``allow_frozen``.
    """
    eta = check_eta(eta)
    require_dtype("dtype", dtype)
    allow_frozen = require_flag("allow_frozen", allow_frozen)
    own = dict(model.named_parameters())
    direction = check_mapping({} if direction is None else direction, own, canonical_names(model))
    if not allow_frozen:
        _refuse_frozen(model, direction)
    return {
        name: _step(cast_up(param.detach(), dtype), direction.get(name), eta)
        for name, param in model.named_parameters()
    }


@in_turn()
def build_state_override(
    model: nn.Module,
    direction: ParamMapping | None,
    eta: float,
    *,
    param_dtype: torch.dtype | None = None,
    include_buffers: bool = False,
    buffer_dtype: torch.dtype | None = None,
    allow_frozen: bool = False,
) -> dict[str, Tensor]:
    """`build_params_override`; on request with the buffers, cast up to ``buffer_dtype``."""
    require_dtype("param_dtype", param_dtype)
    require_dtype("buffer_dtype", buffer_dtype)
    include_buffers = require_flag("include_buffers", include_buffers)
    params = build_params_override(
        model, direction, eta, dtype=param_dtype, allow_frozen=allow_frozen
    )
    if not include_buffers:
        return params
    return params | {name: cast_up(b.detach(), buffer_dtype) for name, b in model.named_buffers()}


@in_turn()
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
        params: overriding parameters, possibly only some, on any device, or None. An infinity is
            taken where the model's own parameter is the same.
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
        state |= check_mapping(params, state, names, are_values=True)
    if buffers is not None:
        names = {name: name for name in own_buffers}
        state |= check_mapping(buffers, own_buffers, names, kind="buffer", are_values=True)
    width = widest([*dtypes, *(t.dtype for name, t in state.items() if name in own_params)])
    return {name: cast_up(tensor, width) for name, tensor in state.items()}, width


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest float that holds all of these."""
    width = None
    for dtype in dtypes:
        if dtype.is_floating_point:
            width = dtype if width is None else torch.promote_types(width, dtype)
    return torch.float32 if width is None else width


def check_eta(eta: object) -> float:
    """The step η as a float; `OverrideError` unless it is a finite number."""
    if isinstance(eta, numbers.Real) and not isinstance(eta, bool):
        with suppress(OverflowError):  # of an integer that no float is near
            if math.isfinite(step := float(eta)):
                return step
    raise OverrideError(f"eta must be a finite number, got {eta!r:.60}")


def check_etas(etas: object) -> list[float]:
    """The steps of a list, a tensor or an array; `OverrideError` unless all are finite numbers."""
    listed = etas.tolist() if isinstance(etas, (Tensor, np.ndarray)) else etas
    if isinstance(listed, (str, bytes, Mapping)) or not isinstance(listed, Iterable):
        raise OverrideError(f"etas must be a list of numbers, got {listed!r:.60}: put it in a list")
    return [check_eta(eta) for eta in listed]


def check_overrides(overrides: object) -> list[ParamMapping | None]:
    """The mappings of a list; None among them stands for the model as it is."""
    if isinstance(overrides, (str, bytes, Tensor, np.ndarray)) or not isinstance(
        overrides, Iterable
    ):
        raise OverrideError(
            "params_override must map parameter names to tensors, or be a list of such mappings, "
            f"got {type(overrides).__name__}"
        )
    many = list(overrides)
    for i, one in enumerate(many):
        if not isinstance(one, Mapping | None):
            raise OverrideError(
                f"params_override[{i}] must map parameter names to tensors, "
                f"got {type(one).__name__}"
            )
    return many


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
    moved = param + eta * direction.detach().to(torch.promote_types(param.dtype, direction.dtype))
    if abs(eta) > _LARGE_STEP and not bool(moved.isfinite().all()):
        raise OverrideError(f"θ + η·v at eta = {eta:g} is not finite in {moved.dtype}")
    return moved
