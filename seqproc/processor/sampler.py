"""`Sampler`: prompts in, `BatchedSequences` out, through one engine that starts when needed.

Knows tokenisation and the engine contract; nothing of scoring, datasets or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from seqproc._util.progress import progress_bar
from seqproc.config import GenerationConfig, require_count
from seqproc.engines import Engine, ModelSource, create_engine
from seqproc.engines.answers import ask, described
from seqproc.engines.base import Completion, Request, StoppingRule
from seqproc.engines.registry import require_known
from seqproc.errors import EngineError, SeqprocError
from seqproc.models import tokenization
from seqproc.processor.assembly import batched_sequences
from seqproc.types import BatchedSequences


class Sampler:
    """Samples responses under a `GenerationConfig`.

    Args:
        source: the model, for the engine; its tokenizer, EOS ids and context length.
        config: policy, stopping and batch size; read at each call, so changes take effect.
        engine: the name of a registered engine, or an `Engine` (which stays the caller's to close).
        engine_options: the engine's own options. A ``batch_size`` among them, or one of a ready
            engine, is kept; only without one does ``config.gen_batch_size`` decide.

    Raises:
        EngineError: no engine of this name; it starts when it is first needed.
    """

    def __init__(
        self,
        source: ModelSource,
        config: GenerationConfig,
        engine: str | Engine,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(engine, Engine):
            require_known(engine)
        self.source = source
        self.config = config
        self._choice = engine
        self._options = dict(engine_options or {})
        self._engine: Engine | None = engine if isinstance(engine, Engine) else None
        self._sets_batch_size = self._engine is None and "batch_size" not in self._options

    @property
    def engine(self) -> Engine:
        """The engine, started now if it was not."""
        if self._engine is None:
            self._engine = create_engine(self._choice, self.source, **self._options)
        return self._engine

    @property
    def is_started(self) -> bool:
        """Whether the engine has started; it does when it is first needed."""
        return self._engine is not None

    @property
    def engine_name(self) -> str:
        """What the engine is asked for by."""
        return self._choice.name if isinstance(self._choice, Engine) else self._choice

    @property
    def stopping(self) -> StoppingRule:
        """When a response ends, under the current configuration."""
        return StoppingRule(
            max_new_tokens=self.config.max_new_tokens,
            eos_token_ids=self.source.eos_token_ids,
            stop=self.config.stop,
        )

    def describe(self) -> dict[str, Any]:
        """The engine's description; empty when none has started."""
        return {} if self._engine is None else described(self._engine)

    def requests(
        self, prompts: Sequence[str], seeds: Sequence[int], num_responses: int = 1
    ) -> list[Request]:
        """Tokenise prompts, once each, and pair their draws with seeds.

        Args:
            prompts: B texts.
            seeds: B·G sampling seeds; request i, of prompt i // G, gets the i-th.
            num_responses: G.

        Raises:
            PromptError: no prompts, an empty one, or one too long for the model's context.
        """
        ids = tokenization.encode_prompts(self.source.tokenizer, prompts)
        tokenization.check_context(
            ids, prompts, self.config.max_new_tokens, self.source.max_context
        )
        draws = [prompt_ids for prompt_ids in ids for _ in range(num_responses)]
        return [
            Request(index=index, prompt_ids=prompt_ids, seed=seed)
            for index, (prompt_ids, seed) in enumerate(zip(draws, seeds, strict=True))
        ]

    def sample(
        self,
        requests: Sequence[Request],
        num_responses: int = 1,
        gen_batch_size: int | None = None,
    ) -> BatchedSequences:
        """Sample every request; the ``num_responses`` of one prompt stand next to each other.

        Args:
            requests: B·G requests.
            num_responses: G.
            gen_batch_size: sequences per batch of this call, for engines that batch statically;
                None for the engine's own, or else ``config.gen_batch_size``.

        Raises:
            EngineError: when the engine fails.
        """
        done = {c.index: c for c in self.stream(requests, gen_batch_size)}
        return batched_sequences(
            requests,
            [done[request.index] for request in requests],
            num_responses,
            self._pad_id(),
        )

    def stream(
        self,
        requests: Iterable[Request],
        gen_batch_size: int | None = None,
        *,
        progress: bool = True,
    ) -> Iterator[Completion]:
        """Completions as the engine finishes them, under a progress bar on a terminal.

        Any engine memory that the scorer may need is given back at the end, also when the engine
        fails or the caller stops early.

        Args:
            requests: a list, or a stream that the engine takes from as it has room.
            gen_batch_size: see `sample`.
            progress: whether to show the bar.
        """
        engine = self.engine
        with self._batch_size(engine, gen_batch_size), _awake(engine):
            completions = ask(
                engine,
                requests,
                self.config.policy,
                self.stopping,
                vocabulary=self.source.vocab_size,
            )
            with closing(completions):
                yield from _with_progress(completions, requests) if progress else completions

    def is_engine_alive(self) -> bool:
        """Whether the engine, after it failed, can be asked again as it is."""
        return self._engine is not None and self._engine.is_alive()

    def restart(self) -> None:
        """Close the engine and start another; one that is the caller's stays as it is.

        Raises:
            EngineError: it is the caller's, or does not start.
        """
        if self._engine is not None and self._engine is self._choice:
            raise EngineError(
                f"the engine {self._engine.name!r} is yours to start again: it was given ready"
            )
        with suppress(SeqprocError):  # what failed may be unable to close
            self.close()
        self._engine = None
        self.engine  # noqa: B018 - starts it

    def use_less_memory(self) -> bool:
        """Halve the batches of an engine that batches statically; False when that cannot be."""
        engine = self.engine
        if engine.batch_size is None or engine.batch_size == 1:
            return False
        engine.batch_size //= 2
        self._sets_batch_size = False
        return True

    @contextmanager
    def _batch_size(self, engine: Engine, asked: int | None) -> Iterator[None]:
        """Set how many sequences an engine that batches statically takes at a time.

        One that the user chose comes back afterwards; ours stays, for the engine's description.
        """
        if asked is not None:
            asked = require_count("gen_batch_size", asked)
        if engine.batch_size is None:
            yield
            return
        own = engine.batch_size
        if self._sets_batch_size:
            own = self.config.gen_batch_size if asked is None else asked
        engine.batch_size = own if asked is None else asked
        try:
            yield
        finally:
            engine.batch_size = own

    def close(self) -> None:
        """Close the engine, if it was started here."""
        if self._engine is not None and self._engine is not self._choice:
            self._engine.close()
            self._engine = None

    def _pad_id(self) -> int:
        pad_id = self.source.tokenizer.pad_token_id
        return self.source.eos_token_ids[0] if pad_id is None else int(pad_id)


@contextmanager
def _awake(engine: Engine) -> Iterator[None]:
    """An engine that works, and sleeps afterwards whatever happens."""
    engine.wake()
    try:
        yield
    except BaseException:
        with suppress(SeqprocError):  # an engine that failed may be unable to sleep, too
            engine.sleep()
        raise
    engine.sleep()


def _with_progress(
    completions: Iterable[Completion], requests: Iterable[Request]
) -> Iterator[Completion]:
    tokens, total = 0, len(requests) if isinstance(requests, Sequence) else None
    with progress_bar(total, "sampling", unit="draw") as bar:
        for completion in completions:
            tokens += len(completion.token_ids)
            bar.update()
            bar.set_postfix_str(f"{tokens} tokens", refresh=False)
            yield completion
