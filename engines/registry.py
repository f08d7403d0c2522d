"""Engines by name: the built-in ones, those that packages announce, and those registered here.

Knows names and the `Engine` contract; imports an engine only to start it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from seqproc.engines.base import Engine
from seqproc.errors import EngineError, SeqprocError, did_you_mean

if TYPE_CHECKING:
    from seqproc.models.source import ModelSource

GROUP = "seqproc.engines"

# Also announced in pyproject.toml; named here so that they are found without metadata, too.
_BUILT_IN = {
    "hf": "seqproc.engines.hf:HFEngine",
    "vllm": "seqproc.engines.vllm:VLLMEngine",
    "scripted": "seqproc.engines.scripted:ScriptedEngine",
}

_registered: dict[str, type[Engine]] = {}


def engine_names() -> list[str]:
    """Every name that `create_engine` knows, sorted."""
    return sorted({*_BUILT_IN, *_registered, *(point.name for point in _announced())})


def register_engine(name: str, cls: type[Engine]) -> None:
    """Make an engine known by name in this process, without packaging it.

    Raises:
        EngineError: when it is no `Engine`, or the name belongs to another engine.
    """
    if not (isinstance(cls, type) and issubclass(cls, Engine)):
        raise EngineError(f"an engine must be a subclass of seqproc.engines.Engine, got {cls!r}")
    if name in engine_names() and _registered.get(name) is not cls:
        raise EngineError(f"the engine name {name!r} is taken; choose another")
    _registered[name] = cls


def create_engine(engine: str | Engine, source: ModelSource, **options: Any) -> Engine:
    """Start an engine on a model.

    Args:
        engine: one of `engine_names`, or an `Engine`, which is returned as it is.
        source: the model.
        **options: the engine's own.

    Raises:
        EngineError: when the name is unknown, an option is not the engine's, or it cannot start.
        MissingDependencyError: when a package that the engine needs is not installed.
    """
    if isinstance(engine, Engine):
        if options:
            raise EngineError(
                f"options ({', '.join(sorted(options))}) go with the name of an engine; "
                f"this {type(engine).__name__} has started already"
            )
        return engine
    from seqproc.models.source import ModelSource

    if not isinstance(source, ModelSource):
        raise EngineError(
            f"source must be a ModelSource, got {type(source).__name__}: "
            "ModelSource.from_model(model, tokenizer) makes one"
        )
    return _find(engine).from_source(source, **options)


def engine_class(name: str) -> type[Engine]:
    """The class of an engine; imports it, and starts nothing.

    Raises:
        EngineError: there is no engine of this name, or it cannot be imported.
    """
    return _find(name)


def require_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that an engine does not have, before it starts, where its class can tell.

    Raises:
        EngineOptionError: naming the option.
        EngineError: there is no engine of this name, or it cannot be imported.
        MissingDependencyError: a package that the engine needs is not installed.
    """
    cls = _find(name)
    owner = next(one for one in cls.__mro__ if "from_source" in vars(one))
    if "require_options" in vars(owner):  # and not in a class that has other options
        cls.require_options(options)


def require_known(name: str) -> None:
    """Raise `EngineError` unless there is an engine of this name; imports and starts nothing."""
    known = engine_names()
    if name not in known:
        hint = did_you_mean(name, known) or (
            f"; an installed package adds one under the entry-point group {GROUP}, and "
            "register_engine one in this process"
        )
        raise EngineError(f"there is no engine {name!r}: expected one of {', '.join(known)}{hint}")


def _find(name: str) -> type[Engine]:
    require_known(name)
    if name in _registered:
        return _registered[name]
    if name in _BUILT_IN:
        return _load(metadata.EntryPoint(name, _BUILT_IN[name], GROUP))
    return _load(next(point for point in _announced() if point.name == name))


def _announced() -> metadata.EntryPoints:
    return metadata.entry_points(group=GROUP)


def _load(point: metadata.EntryPoint) -> type[Engine]:
    try:
        cls = point.load()
    except SeqprocError:  # it says itself what is missing
        raise
    except (ImportError, AttributeError) as error:
        raise EngineError(f"engine {point.name!r} ({point.value}) cannot load: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Engine)):
        raise EngineError(f"engine {point.name!r} ({point.value}) is not a seqproc Engine")
    return cls
