"""The engine contract: requests in, completions out as they finish, close.

An engine turns token ids into sampled token ids under a `SamplingPolicy`. It knows how its own
library decodes; it does not know about scoring, datasets or files. Prompts arrive tokenised.

To add an engine, subclass `Engine`, give it a `from_source`, and announce it under the entry-point
group ``seqproc.engines``.
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from seqproc._util.printing import Facts, Printed
from seqproc.engines.noise import Noise, NotReplayable
from seqproc.errors import EngineError, SequenceError
from seqproc.policy import SamplingPolicy
from seqproc.types import FinishReason

if TYPE_CHECKING:
    from torch import Tensor

    from seqproc.models.source import ModelSource


NO_DISTRIBUTIONS = (
    "the engine {!r} does not tell the distributions that it samples from (Engine.distributions). "
    "What remains is to test the tokens that it samples and the log q that it reports: "
    "seqproc parity --engines"
)

NO_FOLLOWING = (
    "the engine {!r} cannot decode given tokens (Engine.follow), so that the steps of its "
    "generations cannot be compared. What remains is to read each context at once, in a prefill"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One draw: a tokenised prompt and the seed of its randomness."""

    index: int  # the caller's name for the draw; its completion carries it back
    prompt_ids: tuple[int, ...]  # at least one token
    seed: int  # unsigned 64-bit; the draw's tokens depend on it and on nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """When a response ends: at an EOS token, a stop string, or the length limit."""

    max_new_tokens: int  # ≥ 1
    eos_token_ids: tuple[int, ...]  # every id that ends a response; itself part of it
    stop: tuple[str, ...] = ()  # stop strings, found in the text however they tokenise


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished draw. Token ids are the record; the text is derived from them."""

    index: int  # of the request
    token_ids: tuple[int, ...]  # with the EOS, or the token that completes a stop string; no more
    text: str  # decoded, special tokens stripped, stop string kept
    finish_reason: FinishReason
    logqs: tuple[float, ...] | None = None  # the engine's own log q(y_t) in nats, if it has them
    prompt_ids: tuple[int, ...] | None = None  # as the engine really fed them to the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A response that an engine decodes as it is given, and the steps that are asked about."""

    prompt_ids: tuple[int, ...]  # at least one token
    response_ids: tuple[int, ...]
    steps: tuple[int, ...]  # rising, at least one; after so many tokens of the response

    def __post_init__(self) -> None:
        ordered = [-1, *self.steps, len(self.response_ids) + 1]
        if not self.steps or not all(a < b for a, b in itertools.pairwise(ordered)):
            raise SequenceError(
                "the steps of a path must be rising numbers from 0 to its "
                f"{len(self.response_ids)} tokens, at least one; got {self.steps}"
            )

    @property
    def last(self) -> int:
        """The last step: as many tokens of the response are fed."""
        return self.steps[-1]


class TellsDistributions(Protocol):
    """An engine, or what stands in the place of one, as seen by a comparison of distributions."""

    def distributions(
        self, contexts: Sequence[Sequence[int]], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        """See `Engine.distributions`."""
        ...


class Engine(Printed, ABC):
    """A back-end that samples sequences.

    Engines are context managers; `close` frees what they hold and may be called twice.
    """

    name: ClassVar[str]  # as it is asked for
    batch_size: int | None = None  # sequences per static batch, settable; None: schedules itself
    # Options of `from_source` without which `distributions` raises, or `can_follow` is False.
    distribution_options: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    @abstractmethod
    def from_source(cls, source: ModelSource, **options: Any) -> Self:
        """Start the engine on a model. ``options`` are the back-end's own, passed through."""

    @classmethod
    def require_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse options of `from_source` that the engine does not have; starts nothing.

        Whoever has other work to do before the start asks by `registry.require_options`. Optional,
        and of the class that brings `from_source`: one that replaces that replaces this.

        Raises:
            EngineOptionError: as `from_source` would.
            MissingDependencyError: a package that the engine needs is not installed.
        """
        del options

    def _facts(self) -> Facts:
        """What can be told of an engine whether or not it is closed."""
        return {"name": self.name, "batch_size": self.batch_size}

    @property
    @abstractmethod
    def max_context(self) -> int | None:
        """Most tokens of prompt and response together; None when there is no limit."""

    @abstractmethod
    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        """Sample every request from the policy's q; yield completions as they finish.

        The order is the engine's; `Completion.index` tells which request one answers. Requests may
        be a lazy iterable: an engine holds only as many as it can work on.

        Raises:
            EngineError: when the back-end fails or ends a response without a reason.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What samples, JSON-ready: name, library versions, resolved options, dtype."""

    def noise(self, policy: SamplingPolicy) -> Noise | NotReplayable:
        """What the engine's draws under a policy are a function of, if anybody can compute it.

        With it `seqproc.parity` checks every token instead of testing many.
        """
        del policy
        return NotReplayable(f"the engine {self.name!r} does not say what noise it draws with")

    def distributions(
        self, contexts: Sequence[Sequence[int]], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        """What the next token would be sampled from after each of the given contexts; optional.

        It comes from the model and the sampler that `generate` samples with.

        Args:
            contexts: token ids of prompt and response so far, each of at least one token. A full
                context leaves no room for a next token, and is refused.
            policy: as for `generate`.

        Returns:
            For each context, in the order given, log q of every id: ``[V]``, nats, −∞ outside the
            support. Computed as they are read: a long list need not fit in memory.

        Raises:
            EngineError: at the call, when the engine cannot tell; later, when the back-end fails.
        """
        del contexts, policy
        raise EngineError(NO_DISTRIBUTIONS.format(self.name))

    @property
    def can_follow(self) -> bool:
        """Whether `follow` works."""
        return False

    def follow(self, paths: Sequence[Path], policy: SamplingPolicy) -> Iterator[Tensor]:
        """What the next token would be sampled from while given responses are decoded; optional.

        As `distributions`, but the tokens of a response are fed as `generate` feeds those that it
        samples: one at a time, behind its cache. So what is wrong in decode steps alone shows.

        Args:
            paths: responses and their steps. A step's next token has to fit the context.
            policy: as for `generate`.

        Returns:
            For each path in the order given, and each of its steps, log q of every id: ``[V]``,
            nats, −∞ outside the support. At step 0 it is that of the prompt's prefill.

        Raises:
            EngineError: at the call, when the engine cannot; later, when the back-end fails.
        """
        del paths, policy
        raise EngineError(NO_FOLLOWING.format(self.name))

    def layer_outputs(self, context: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        """What decoder layers, and modules in them, return while a context is read; optional.

        Args:
            context: token ids, at least one.
            names: of modules, as transformers names them.

        Returns:
            Of those modules that the engine's model has, by name: ``[T, H]`` for T tokens of the
            context; of a layer the hidden states after it, the residual included.

        Raises:
            EngineError: the engine cannot tell, or fails.
        """
        del context, names
        raise EngineError(f"the engine {self.name!r} does not tell what its layers return")

    def load_weights(self, weights: Mapping[str, Tensor] | str | os.PathLike[str] | None) -> None:
        """Sample with other weights from the next `generate` on. The live model stays as it is.

        Args:
            weights: one of three. A mapping of parameter names of the live model to tensors, such
                as a scorer's ``params_override``, possibly of some parameters only: those without
                an entry keep the source's own values θ, whatever was loaded before. It is copied.
                Or a directory: a full checkpoint in safetensors, which leaves an adapter of the
                source's in place, or a PEFT LoRA adapter, which takes its place. Or None, for the
                source's own weights.

        Raises:
            EngineError: the engine cannot take weights, or is generating; an unknown name, another
                shape, no such directory, or one without safetensors (nothing is ever unpickled).
        """
        del weights
        raise EngineError(
            f"the engine {self.name!r} cannot take other weights; use engine='hf' or 'vllm', or "
            "start another engine on a model that has them"
        )

    def fingerprint(self) -> str | None:
        """Hex digest of the weights that the engine holds now; None when it cannot tell.

        It is read from the tensors that the engine computes with, not remembered from what it was
        given, and changes with any bit of a weight. Engines lay weights out in their own ways:
        digests compare between engines of the same kind and options only.
        """
        return None

    @property
    def num_running(self) -> int | None:
        """Requests that are being sampled at this moment; None when the engine cannot tell."""
        return None

    def is_alive(self) -> bool:
        """Whether the engine can still generate, after it raised an error."""
        return True

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` gives memory back that a scorer on the same device may need."""
        return False

    def sleep(self) -> None:
        """Give device memory back while something else (the scorer) needs it; optional."""

    def wake(self) -> None:
        """Undo `sleep`; called before the next `generate`."""

    def close(self) -> None:
        """Free everything; the engine cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
