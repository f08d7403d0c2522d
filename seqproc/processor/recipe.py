"""How a processor was opened, so that another process can open one like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from seqproc.processor.processor import SequenceProcessor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorRecipe:
    """A class and arguments of its `from_pretrained`; neither weights nor an engine. Pickles."""

    kind: type[SequenceProcessor]
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, processor: SequenceProcessor) -> Self:
        """The recipe of a processor, with its configuration as it is now.

        Raises:
            ConfigError: the processor was given a model or an engine that is in memory.
        """
        arguments = processor.opened_with
        if arguments is None:
            raise ConfigError(
                "another process cannot open a model that is in memory here: open the processor "
                "with SequenceProcessor.from_pretrained"
            )
        if not isinstance(arguments["engine"], str):
            raise ConfigError(
                "another process cannot use an engine that is in memory here: give from_pretrained "
                f"the name of an engine, not a {type(arguments['engine']).__name__}"
            )
        config = {"generation": processor.config, "precision": processor.precision}
        return cls(kind=type(processor), arguments={**arguments, "config": config})

    def open(self) -> SequenceProcessor:
        """Open a processor."""
        return self.kind.from_pretrained(**self.arguments)
