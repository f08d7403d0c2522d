"""Configuration: what the specification names, validated, from a dict, a TOML file or keywords.

Two sections: ``generation`` (`GenerationConfig`) and ``precision`` (`PrecisionConfig`). Unknown
keys, wrong types and values out of range raise `ConfigError` with what was expected. Knows nothing
about models or engines.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from seqproc._util.kernels import KERNELS, KernelName, kernels_of_environment
from seqproc._util.toml import TomlFile
from seqproc.errors import ConfigError, did_you_mean
from seqproc.policy import MAX_TEMPERATURE, MIN_TEMPERATURE, SamplingPolicy
from seqproc.rewards import TAG_AND_ANSWER

_LOGGER = logging.getLogger("seqproc")

DTypeName = Literal["float64", "float32", "bfloat16", "float16"]
_OTHER_DTYPE_NAMES = {
    "fp64": "float64",
    "double": "float64",
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}
MatmulPrecision = Literal["highest", "high", "medium"]

DEFAULT_STOP = ("</answer>",)

# A number spelled as a string, or True for 1, is a mistake to report and not one to guess about.
_CHECKED = ConfigDict(extra="forbid", validate_assignment=True, strict=True)

C = TypeVar("C")


def _stop_strings(value: object) -> object:
    """Accept one string or any list of them; keep them as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def dtype_name(value: object) -> object:
    """The one name of a dtype that has several ("fp32", "torch.float32"); else what was given."""
    if isinstance(value, torch.dtype):
        value = str(value)
    if not isinstance(value, str):
        return value
    name = value.strip().lower().removeprefix("torch.")
    return _OTHER_DTYPE_NAMES.get(name, name)


def _two_numbers(value: object) -> object:
    """A list, as TOML has it, or a mapping of both, as a pair."""
    if isinstance(value, Mapping):
        known = {"tag", "answer"}
        if set(value) != known:
            raise ValueError(f"must name {' and '.join(sorted(known))}, and nothing else")
        value = [value["tag"], value["answer"]]
    if isinstance(value, (list, tuple)):
        return tuple(map(_integer_as_float, value))
    return value


def _integer_as_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _kernel_names(value: object) -> object:
    """Names in a list as a tuple; True for all kernels, False for none."""
    if isinstance(value, bool):
        return KERNELS if value else ()
    return tuple(value) if isinstance(value, list) else value


def _autocast_off(value: bool) -> bool:
    if value:
        raise ValueError(
            "must be False: scoring without gradients never runs under autocast. Use "
            "tf_withgrad.autocast, or load the model in bfloat16, set tf_nograd.dtype='bfloat16' "
            "and func_override.cast_params=False"
        )
    return value


def _within_temperatures(value: float) -> float:
    if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise ValueError(
            f"must lie in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}]; for greedy decoding use "
            "do_sample=False (--greedy)"
        )
    return value


PositiveInt = Annotated[int, Field(ge=1)]
Temperature = Annotated[
    float,
    BeforeValidator(_integer_as_float),
    AfterValidator(_within_temperatures),
]
DType = Annotated[DTypeName, BeforeValidator(dtype_name)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
TopP = Annotated[float, BeforeValidator(_integer_as_float), Field(gt=0, le=1)]
StopString = Annotated[str, Field(min_length=1)]
AlwaysOff = Annotated[bool, AfterValidator(_autocast_off)]


def _readable_errors(cls: type[C]) -> type[C]:
    """Turn pydantic's report into a `ConfigError` of one readable line per problem."""

    def teach(method: Any) -> Any:
        @functools.wraps(method)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                method(self, *args, **kwargs)
            except ValidationError as error:
                raise ConfigError(_explain(cls, error)) from None

        return wrapped

    # ``setattr`` because a type checker rightly dislikes replacing methods in plain sight.
    for name in ("__init__", "__setattr__"):
        setattr(cls, name, teach(getattr(cls, name)))
    return cls


def _explain(cls: type, error: ValidationError) -> str:
    known = [f.name for f in dataclasses.fields(cls)]
    return "; ".join(_explain_one(cls.__name__, known, problem) for problem in error.errors())


def _explain_one(owner: str, known: list[str], problem: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "arguments"
    if problem["type"] in ("unexpected_keyword_argument", "no_such_attribute"):
        hint = did_you_mean(name, known)
        return f"unknown key {name!r} in {owner}: known keys are {', '.join(known)}{hint}"
    if problem["type"] == "value_error":  # raised by a check of ours
        return f"{owner}.{name} {problem['ctx']['error']}, got {problem.get('input')!r}"
    expected = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{owner}.{name}: {expected}, got {problem.get('input')!r}"


@_readable_errors
@dataclass(config=_CHECKED)
class GenerationConfig:
    """How sequences are sampled, and in what batches they are generated and scored.

    Raises:
        ConfigError: on an unknown key, a wrong type, or a value out of range.
    """

    temperature: Temperature = 1.0  # T in [1e-6, 1e6]
    top_p: TopP = 1.0  # nucleus mass in (0, 1]
    max_new_tokens: PositiveInt = 200  # per response
    do_sample: bool = True  # False: greedy
    num_return_sequences: PositiveInt = 8  # G when a call does not say
    gen_batch_size: PositiveInt = 32  # sequences per batch of an engine that batches statically
    tf_batch_size: PositiveInt = 8  # most sequences per teacher-forced forward
    rb_requires_grad: bool = False  # with-grad scoring also returns differentiable RB entropies
    stop: Annotated[tuple[StopString, ...], BeforeValidator(_stop_strings)] = DEFAULT_STOP
    tf_token_budget: PositiveInt | None = None  # most tokens per forward; None: from free memory
    tf_share_prompts: bool = True  # compute a prompt once for all its responses in a forward
    # What `tag_pref` gives for the form of a response, and for a right answer on top of it.
    reward_weights: Annotated[tuple[Finite, Finite], BeforeValidator(_two_numbers)] = TAG_AND_ANSWER

    @property
    def policy(self) -> SamplingPolicy:
        """The sampling policy that this configuration describes."""
        return SamplingPolicy(
            temperature=self.temperature, top_p=self.top_p, do_sample=self.do_sample
        )


# Keys of the specification's profiles that choose what is never otherwise here.
_WITHOUT_EFFECT = {
    "cast_buffers": "buffers are cast up with the parameters",
    "fallback_on_nan": "a score that is not a number is an error",
}


def _with_effect(profile: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values but those of an override profile that have none, which the log tells of."""
    if profile.__name__ != "OverrideProfile":
        return dict(values)
    for name in values:
        if name in _WITHOUT_EFFECT:
            _LOGGER.warning("func_override.%s has no effect: %s", name, _WITHOUT_EFFECT[name])
    return {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT}


class _Keyed:
    """Fields by key as well, since probes written for dict profiles say ``cfg["dtype"]``."""

    def __getitem__(self, key: str) -> Any:
        self._require(key)
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        for name, one in _with_effect(type(self), {key: value}).items():
            self._require(name)
            setattr(self, name, one)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """Names of the fields."""
        return [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]

    def get(self, key: str, default: Any = None) -> Any:
        """The field, or ``default`` when there is none of that name."""
        return getattr(self, key) if key in self.keys() else default

    def update(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set several fields: all of them, or none when one is not valid."""
        values = _with_effect(type(self), {**(values or {}), **more})
        for key in values:
            self._require(key)
        dataclasses.replace(self, **values)  # type: ignore[type-var]
        for key, value in values.items():
            self[key] = value

    def _require(self, key: str) -> None:
        if key not in self.keys():
            raise ConfigError(
                f"unknown key {key!r} in {type(self).__name__}: "
                f"known keys are {', '.join(self.keys())}"
            )


@_readable_errors
@dataclass(config=_CHECKED)
class OverrideProfile(_Keyed):
    """Parameter overrides, `functional_call` (``func_override``)."""

    autocast: AlwaysOff = False  # always off: overrides are evaluated as given
    dtype: DType = "float32"  # effective parameters θ + η·v are cast up to this
    cast_params: bool = True


@_readable_errors
@dataclass(config=_CHECKED)
class NoGradProfile(_Keyed):
    """Teacher forcing without gradients (``tf_nograd``)."""

    autocast: AlwaysOff = False  # always off: the path is the numerical reference
    dtype: DType = "float32"  # the forward runs at least this wide; float64 is true fp64
    cast_logits_fp32: bool = True  # statistics never below float32


@_readable_errors
@dataclass(config=_CHECKED)
class WithGradProfile(_Keyed):
    """Teacher forcing on the live module, with gradients (``tf_withgrad``)."""

    autocast: bool = False
    dtype: DType = "float32"  # of autocast when it is on, else the forward's least width
    cast_logits_fp32: bool = True


@_readable_errors
@dataclass(config=_CHECKED)
class PrecisionConfig:
    """Dtypes of forward passes and statistics. Casts only ever go up."""

    func_override: OverrideProfile = dataclasses.field(default_factory=OverrideProfile)
    tf_nograd: NoGradProfile = dataclasses.field(default_factory=NoGradProfile)
    tf_withgrad: WithGradProfile = dataclasses.field(default_factory=WithGradProfile)
    allow_tf32: bool = False  # False keeps float32 matmuls in float32, whatever matmul_precision
    matmul_precision: MatmulPrecision = "high"  # takes effect only with allow_tf32
    entropy_fp64: bool = False  # statistics in float64 over the forward's logits
    # Optional speed that is on: all of it, or what the variable SEQPROC_KERNELS says.
    kernels: Annotated[tuple[KernelName, ...], BeforeValidator(_kernel_names)] = dataclasses.field(
        default_factory=kernels_of_environment
    )


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a configured name, e.g. ``"float32"``."""
    canonical = dtype_name(name)
    if not isinstance(canonical, str) or canonical not in get_args(DTypeName):
        known = ", ".join(get_args(DTypeName))
        raise ConfigError(f"dtype must be one of {known}, got {name!r}")
    dtype: torch.dtype = getattr(torch, str(canonical))
    return dtype


ConfigLike = GenerationConfig | Mapping[str, Any] | str | Path | None


def load_config(config: ConfigLike) -> tuple[GenerationConfig, PrecisionConfig]:
    """Read a configuration in any of its forms.

    Args:
        config: None (defaults), a `GenerationConfig`, a mapping with the sections ``generation``
            and ``precision``, or the path of a TOML file with these tables.

    Raises:
        ConfigError: on an unknown section or key, a wrong type, or a value out of range.
    """
    if isinstance(config, (str, Path)):
        config = TomlFile.read(Path(config)).values
    if config is None:
        return GenerationConfig(), PrecisionConfig()
    if isinstance(config, GenerationConfig):
        return dataclasses.replace(config), PrecisionConfig()
    if not isinstance(config, Mapping):
        raise ConfigError(
            "config must be a GenerationConfig, a mapping with the sections 'generation' and "
            f"'precision', or the path of a TOML file, got {type(config).__name__}"
        )
    _check_sections("config", config, ("generation", "precision"))
    generation = GenerationConfig(**_section("generation", config))
    return generation, _load_precision(_section("precision", config))


def _load_precision(section: Mapping[str, Any]) -> PrecisionConfig:
    profiles = {
        "func_override": OverrideProfile,
        "tf_nograd": NoGradProfile,
        "tf_withgrad": WithGradProfile,
    }
    nested = {
        name: profile(**_with_effect(profile, _section(name, section)))
        for name, profile in profiles.items()
        if name in section
    }
    return PrecisionConfig(**{**section, **nested})


def _section(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    section = config.get(name)
    if section is None:
        return {}
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return dataclasses.asdict(section)
    if not isinstance(section, Mapping):
        raise ConfigError(f"section {name!r} must be a mapping, got {type(section).__name__}")
    for key in section:
        if not isinstance(key, str):
            raise ConfigError(f"section {name!r}: keys must be strings, got {key!r}")
    return section


def _check_sections(owner: str, config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in config:
        if name in known:
            continue
        in_generation = name in {f.name for f in dataclasses.fields(GenerationConfig)}
        hint = f"; {name!r} belongs in the section 'generation'" if in_generation else ""
        raise ConfigError(
            f"unknown section {name!r} in {owner}: known sections are {', '.join(known)}{hint}"
        )


def require_flag(name: str, value: object) -> bool:
    """A flag that a caller gave: True or False, or a `ConfigError` that names it.

    Not whatever counts as true: ``"False"`` does.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} must be True or False, got {value!r:.60}")
    return bool(value)


def require_count(name: str, value: object) -> int:
    """A count that a caller gave: an integer ≥ 1, or a `ConfigError` that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")
    return value
