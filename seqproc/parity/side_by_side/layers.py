"""Two models layer by layer: the first module whose output differs, and the weights that do.

Both read the same tokens. Modules are compared by name, in the order in which the first model's
finish: a module inside another comes before it, so that the one named is the smallest.

Knows models, token ids and what engines tell of their layers; no policies.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqproc._util.isolation import in_turn
from seqproc.engines.answers import described
from seqproc.engines.base import Engine
from seqproc.errors import ConfigError, ModelError, SequenceError
from seqproc.models.introspection import num_embedded
from seqproc.models.parameters import ParamMapping
from seqproc.models.wrappers import unwrap
from seqproc.scorers.forward import device_of, evaluating, forward_logits
from seqproc.scorers.overrides import resolve_mapping
from seqproc.scorers.precision import exact_forward

# Relative differences that rounding explains. SmolLM2-135M's largest over all modules were 2e-14
# and 9e-6 between kernels of attention, 0.03 and 0.27 from float32 to float16 and bfloat16.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.float16: 0.1,
    torch.bfloat16: 0.5,
}

_IN_LAYERS = re.compile(r"\.layers\.\d+(\.(self_attn|mlp))?$")

# Outputs of modules by name, one list of tensors for each call.
_Outputs = dict[str, list[list[Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDifference:
    """Where two models part."""

    module: str  # its name in both
    kind: str  # its class
    difference: float  # max ‖a − b‖ / ‖a‖ over the vectors of its output; see `first_difference`
    tolerance: float
    num_before: int  # modules that finish before it, and agree
    parameters: tuple[str, ...]  # of this module, with those inside it, that differ
    num_parameters: int | None  # of the whole models that differ; None of an engine
    # Of its outputs in both, where these are of different shapes, and do not compare.
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None


def first_difference(
    first: nn.Module,
    second: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    first_override: ParamMapping | None = None,
    second_override: ParamMapping | None = None,
    tolerance: float | None = None,
) -> FirstDifference | None:
    """Which module's output first differs between two models.

    A vector a that is zero, as the embedding of a padding token is, has no length to compare with:
    the longest of the module's output stands in for it. Outputs of different shapes differ by ∞.

    Where the module that is named has no parameter that differs, the difference is not of weights:
    look at its code, its configuration, its buffers or the kernels that it runs on.

    Args:
        first: a causal language model.
        second: one with modules of the same names, in any dtype, on any device; also the first one,
            with an override.
        sequences: token ids, each read in a forward of its own, without padding.
        first_override: parameters of the first, possibly partial; None for its own.
        second_override: parameters of the second.
        tolerance: largest relative difference ‖a − b‖ / ‖a‖ of output vectors that is none; None
            for that of the coarser dtype of the two in `TOLERANCES`. With 0, for two models on the
            same kernels, one changed bit is found.

    Returns:
        The module, or None where no output differs by more than the tolerance.

    Raises:
        SequenceError: no sequences, an empty one, or an id that one of the models does not embed.
        ConfigError: a tolerance that is no number ≥ 0.
        ModelError: no module of the one has the name of one of the other's.
        OverrideError: an override that does not fit its model.
    """
    sequences = _sequences(sequences)
    sides = _Side.of(first, first_override), _Side.of(second, second_override)
    for side in sides:
        require_ids(sequences, side.model)
    if tolerance is None:
        tolerance = max(TOLERANCES.get(side.width, 0.0) for side in sides)
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance must be a number ≥ 0, got {tolerance!r}")
    differences = _differences(*sides, sequences)
    found = next((name for name, gap in differences.items() if gap.relative > tolerance), None)
    if found is None:
        return None
    changed = _changed_parameters(*sides)
    return FirstDifference(
        module=found,
        kind=type(sides[0].model.get_submodule(found)).__name__,
        difference=differences[found].relative,
        shapes=differences[found].shapes,
        tolerance=tolerance,
        num_before=list(differences).index(found),
        parameters=tuple(name for name in changed if _is_inside(name, found)),
        num_parameters=len(changed),
    )


def first_difference_of_engine(
    model: nn.Module,
    engine: Engine,
    sequences: Sequence[Sequence[int]],
    *,
    override: ParamMapping | None = None,
) -> FirstDifference | None:
    """Which decoder layer, attention or MLP of an engine first differs from a model's.

    An engine lays weights out in its own way, so that no parameters are named. What is allowed is
    that of the coarser dtype of the two in `TOLERANCES`, float32's at least.

    Args:
        model: a causal language model.
        engine: one that has `Engine.layer_outputs`.
        sequences: token ids, each read alone.
        override: parameters of the model; None for its own.

    Raises:
        SequenceError: no sequences, an empty one, or an id that the model does not embed.
        EngineError: the engine cannot tell, or fails.
        ModelError: it has no modules of the names that the model has.
    """
    sequences = _sequences(sequences)
    side = _Side.of(model, override)
    names = [name for name, _ in side.model.named_modules() if _IN_LAYERS.search(name)]
    theirs = _EngineSide(engine=engine, names=names)
    require_ids(sequences, side.model)
    differences = _differences(side, theirs, sequences)
    widths = torch.float32, side.width, getattr(torch, str(described(engine).get("dtype")), None)
    tolerance = max(TOLERANCES.get(width, 0.0) for width in widths if width is not None)
    found = next((name for name, gap in differences.items() if gap.relative > tolerance), None)
    if found is None:
        return None
    return FirstDifference(
        module=found,
        kind=type(side.model.get_submodule(found)).__name__,
        difference=differences[found].relative,
        shapes=differences[found].shapes,
        tolerance=tolerance,
        num_before=list(differences).index(found),
        parameters=(),
        num_parameters=None,
    )


def _sequences(given: Iterable[Iterable[int]]) -> list[list[int]]:
    """As lists of Python's integers.

    Raises:
        SequenceError: none, an empty one, or what is no token id.
    """
    try:
        sequences = [[operator.index(token) for token in ids] for ids in given]
    except TypeError as error:
        raise SequenceError(
            f"a comparison of models needs sequences of token ids, integers each: {error}"
        ) from error
    if not sequences or not all(sequences):
        raise SequenceError("a comparison of models needs sequences of at least one token each")
    return sequences


def require_ids(sequences: Sequence[Sequence[int]], model: nn.Module) -> None:
    """Raise `SequenceError` for a token id that a model, if it tells, does not embed."""
    size = num_embedded(model)
    if size is None:
        return
    odd = next((i for ids in sequences for i in ids if not 0 <= i < size), None)
    if odd is not None:
        raise SequenceError(
            f"the token id {odd} is none of the {size} that a {type(model).__name__} of the "
            "comparison embeds: compare models of one vocabulary, on ids that both have"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gap:
    """How far two outputs of a module are apart."""

    relative: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # where these differ


@dataclass(frozen=True, slots=True, kw_only=True)
class _EngineSide:
    """An engine, and the modules that it is asked about."""

    engine: Engine
    names: Sequence[str]

    @property
    def model(self) -> Engine:
        return self.engine

    def outputs(self, ids: Sequence[int]) -> _Outputs:
        told = self.engine.layer_outputs(ids, self.names)
        return {name: [[values.unsqueeze(0)]] for name, values in told.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A model with the tensors that it computes with."""

    model: nn.Module
    state: Mapping[str, Tensor]  # parameters and buffers
    width: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, override: ParamMapping | None) -> _Side:
        model = unwrap(model)
        state, width = resolve_mapping(model, override, None, ())
        return cls(model=model, state=state, width=width)

    @in_turn()
    @torch.no_grad()
    def outputs(self, ids: Sequence[int]) -> _Outputs:
        """What every module returned for one sequence, on the CPU, in the order of finishing."""
        inputs = torch.tensor([list(ids)], device=device_of(self.model))
        with _recording(self.model) as seen, evaluating(self.model), exact_forward(self.width):
            forward_logits(self.model, inputs, torch.ones_like(inputs), self.state)
        return seen


@contextmanager
def _recording(model: nn.Module) -> Iterator[_Outputs]:
    """Collect the outputs of all modules but the model itself, whose logits its head has given."""
    seen: _Outputs = {}
    with ExitStack() as hooks:
        for name, module in model.named_modules():

            def record(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                # A copy: what comes later may write into it.
                copies = [one.detach().to("cpu", copy=True) for one in _tensors(output)]
                seen.setdefault(name, []).append(copies)

            if name:
                hooks.callback(module.register_forward_hook(record).remove)
        yield seen


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor of numbers in what a module returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
        return
    values: Iterable[Any] = ()
    if isinstance(output, Mapping):  # also what transformers' models return
        values = output.values()
    elif isinstance(output, (list, tuple)):
        values = output
    for value in values:
        yield from _tensors(value)


def _differences(
    first: _Side, second: _Side | _EngineSide, sequences: Sequence[Sequence[int]]
) -> dict[str, _Gap]:
    """The largest difference of each module over all sequences, in order of finishing."""
    largest: dict[str, _Gap] = {}
    for ids in sequences:
        ours, theirs = first.outputs(ids), second.outputs(ids)
        for name in ours:
            if name in theirs:
                found = _difference(ours[name], theirs[name])
                largest[name] = max(largest.get(name, _Gap(relative=0.0)), found, key=_size)
    if not largest:
        raise ModelError(
            f"a {type(first.model).__name__} and a {type(second.model).__name__} have no modules "
            "of the same names to compare; take adapters off one, or merge them"
        )
    return largest


def _size(gap: _Gap) -> float:
    return gap.relative


def _difference(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> _Gap:
    """Of all calls of a module, tensor by tensor. What only one returns is left out.

    So are the weights of attention, which some kernels return and others never have.
    """
    pairs = [
        pair for calls in zip(ours, theirs, strict=False) for pair in zip(*calls, strict=False)
    ]
    return max((_gap(a, b) for a, b in pairs), default=_Gap(relative=0.0), key=_size)


def _gap(a: Tensor, b: Tensor) -> _Gap:
    if a.shape != b.shape:
        return _Gap(relative=math.inf, shapes=(tuple(a.shape), tuple(b.shape)))
    return _Gap(relative=_relative(a, b))


def _relative(a: Tensor, b: Tensor) -> float:
    """max ‖a − b‖ / ‖a‖ over vectors along the last dimension; of a = 0, over the longest ‖a‖."""
    a, b = torch.atleast_1d(a.double()), torch.atleast_1d(b.double())
    if not a.numel():
        return 0.0
    gaps, lengths = torch.where(a == b, 0.0, a - b).norm(dim=-1), a.norm(dim=-1)
    ratios = torch.where(gaps == 0, 0.0, gaps / torch.where(lengths == 0, lengths.max(), lengths))
    return float(ratios.nan_to_num(nan=math.inf, posinf=math.inf).max())


def _changed_parameters(first: _Side, second: _Side) -> list[str]:
    """Names of the parameters that differ by more than the rounding to the coarser dtype."""
    other = dict(second.model.named_parameters())
    names = [name for name, _ in first.model.named_parameters() if name in other]
    return [name for name in names if _differ(first.state[name], second.state[name])]


def _differ(a: Tensor, b: Tensor) -> bool:
    if not (a.is_floating_point() and b.is_floating_point()):
        return not torch.equal(a.cpu(), b.cpu())
    coarser = max((a.dtype, b.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    return not torch.equal(a.detach().cpu().to(coarser), b.detach().cpu().to(coarser))


def _is_inside(parameter: str, module: str) -> bool:
    return parameter.startswith(f"{module}.")
