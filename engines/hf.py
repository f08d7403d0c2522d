"""The Hugging Face engine: `model.generate`, sampling by Gumbel noise.

`generate` decodes greedily, and one logits processor of ours turns greedy decoding into sampling:
it leaves only the token that `coupling.choose` chooses. So a draw depends on its prompt and seed
alone, and not on its batch, up to logits so near to a tie that rounding decides.

Nothing of the checkpoint's own generation configuration takes part. Knows nothing about datasets,
scoring or files.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqproc._util.isolation import in_turn, undisturbed
from seqproc._util.memory import is_out_of_memory
from seqproc._util.printing import Facts, name_of_dtype
from seqproc.engines.base import Completion, Engine, Path, Request, StoppingRule
from seqproc.engines.contexts import PathFollower, decoding, path_requests, read_at_once
from seqproc.engines.coupling import choose, one_hot_scores
from seqproc.engines.gumbel import seed_tensor
from seqproc.engines.noise import COUPLED, GREEDY, Noise, NotReplayable
from seqproc.engines.stopping import StopWatcher, check_request, finish
from seqproc.errors import ConfigError, EngineError, EngineMemoryError, EngineOptionError
from seqproc.models.fingerprint import FingerprintCache
from seqproc.models.source import ModelSource
from seqproc.models.tokenization import Tokenizer
from seqproc.models.weights import (
    own_copies,
    read_weights,
    temporary_weights,
    validate_weights,
    weights_directory,
)
from seqproc.policy import SamplingPolicy

# Shapes: N rows of a batch, P padded prompt width, T generated tokens, V vocabulary.

_BATCHES_AHEAD = 4  # requests are sorted by length within this many batches


class HFEngine(Engine):
    """Samples with a transformers model in memory, in static batches.

    Args:
        model: a causal language model, or PEFT's wrapper of one. It is put into evaluation mode
            while it generates, with any loaded weights in it, and is otherwise left as it was.
        tokenizer: the model's tokenizer, which tells where a response ends.
        max_context: longest sequence of prompt and response [tokens]; None for no limit.
        batch_size: sequences per batch.
    """

    name: ClassVar[str] = "hf"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        max_context: int | None = None,
        batch_size: int = 32,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self.batch_size = batch_size
        self._model = model
        self._tokenizer = tokenizer
        self._max_context = max_context
        self._weights: dict[str, Tensor] = {}  # instead of the model's own, while it generates
        self._fingerprints = FingerprintCache()
        self._num_generating = 0

    def _facts(self) -> Facts:
        model, parameter = type(self._model).__name__, next(self._model.parameters(), None)
        dtype = None if parameter is None else name_of_dtype(parameter.dtype)
        return {**super()._facts(), "model": model, "dtype": dtype}

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> HFEngine:
        """Use the source's live model. The one option is ``batch_size``."""
        cls.require_options(options)
        return cls(source.live_model(), source.tokenizer, max_context=source.max_context, **options)

    @classmethod
    def require_options(cls, options: Mapping[str, Any]) -> None:
        """See `Engine.require_options`."""
        unknown = sorted(set(options) - {"batch_size"})
        if unknown:
            raise EngineOptionError(
                f"engine 'hf' has no option {', '.join(unknown)}; its one option is batch_size"
            )

    @property
    def max_context(self) -> int | None:
        """The model's context length."""
        return self._max_context

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        """Sample batch by batch; see `Engine.generate`."""
        self._num_generating += 1
        try:
            for batch in self._batches(requests, stopping):
                yield from self._generate_batch(batch, policy, stopping)
        finally:
            self._num_generating -= 1

    @in_turn()
    def load_weights(self, weights: Mapping[str, Tensor] | str | os.PathLike[str] | None) -> None:
        """Sample with other weights; see `Engine.load_weights`.

        A LoRA adapter for a model that has none is merged into the weights, on a copy.
        """
        if self._num_generating:
            raise EngineError(
                "a generation is under way: finish or close its iterator before loading weights"
            )
        if weights is None:
            self._weights = {}
            return
        given = weights
        if not isinstance(given, Mapping):
            given = read_weights(self._model, weights_directory(weights))
        kept = given.values() if given is weights else ()
        self._weights = own_copies(validate_weights(self._model, given), kept)

    @in_turn()
    def fingerprint(self) -> str:
        """Of the model's parameters and persistent buffers, with loaded weights in their place."""
        persistent = set(self._model.state_dict())
        buffers = self._model.named_buffers()
        tensors: dict[str, Tensor] = dict(self._model.named_parameters())
        tensors |= {name: buffer for name, buffer in buffers if name in persistent}
        return self._fingerprints.fingerprint(tensors | self._weights)

    def noise(self, policy: SamplingPolicy) -> Noise | NotReplayable:
        """Coupled sampling's; none when it decodes greedily."""
        return COUPLED if policy.do_sample else GREEDY

    def distributions(
        self, contexts: Sequence[Sequence[int]], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        """See `Engine.distributions`; in float64, from the logits that `generate` gives."""
        return self.follow(read_at_once(contexts), policy)

    @property
    def can_follow(self) -> bool:
        """Always."""
        return True

    def follow(self, paths: Sequence[Path], policy: SamplingPolicy) -> Iterator[Tensor]:
        """See `Engine.follow`; in float64, in batches, as `generate` decodes with its cache."""
        return self._follow(path_requests(paths, self._max_context), paths, policy)

    def _follow(
        self, requests: Sequence[Request], paths: Sequence[Path], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        size = self.batch_size or 1
        self._num_generating += 1
        try:
            for start in range(0, len(requests), size):
                some = paths[start : start + size]
                follower = PathFollower(some, policy)
                padded = _left_padded(requests[start : start + size], self._device)
                self._run(padded, decoding(some), follower)
                yield from itertools.chain.from_iterable(follower.found)
        finally:
            self._num_generating -= 1

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def describe(self) -> dict[str, Any]:
        """What samples, JSON-ready."""
        parameter = next(self._model.parameters())
        return {
            "name": self.name,
            "sampler": "coupled",
            "versions": {
                "transformers": metadata.version("transformers"),
                "torch": torch.__version__,
            },
            "options": {"batch_size": self.batch_size},
            "model_class": type(self._model).__name__,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": str(parameter.device),
            "weights": self.fingerprint(),
        }

    def _batches(
        self, requests: Iterable[Request], stopping: StoppingRule
    ) -> Iterator[list[Request]]:
        """Batches of prompts of like length, from a stream."""
        stream = iter(requests)
        size = self.batch_size or 1
        while window := list(itertools.islice(stream, size * _BATCHES_AHEAD)):
            for request in window:
                check_request(request, stopping, self._max_context)
            window.sort(key=lambda request: len(request.prompt_ids))
            for start in range(0, len(window), size):
                yield window[start : start + size]

    def _generate_batch(
        self, batch: Sequence[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> list[Completion]:
        ids_NP, mask_NP = padded = _left_padded(batch, self._device)
        sampler = PolicySampler(policy, [request.seed for request in batch])
        stops = StopStrings(self._tokenizer, stopping, len(batch))
        output = self._run(padded, stopping, sampler, [stops] if stopping.stop else [])
        rows = output[:, ids_NP.shape[1] :].tolist()
        logqs = sampler.token_logqs().tolist()
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(ids_NP, mask_NP, strict=True)]
        return [
            self._completion(request, prompt, row[:end], row_logqs, stopping)
            for request, prompt, row, row_logqs, end in zip(
                batch, prompts, rows, logqs, stops.ends, strict=True
            )
        ]

    def _run(
        self,
        padded: tuple[Tensor, Tensor],
        stopping: StoppingRule,
        processor: Callable[[Tensor, Tensor], Tensor],
        criteria: Sequence[Any] = (),
    ) -> Tensor:
        """`generate` on padded prompts: their ids with those of the responses, ``[N, P + T]``."""
        ids_NP, mask_NP = padded
        try:
            with (
                in_turn(),
                undisturbed(ids_NP.device),
                torch.no_grad(),
                _generating(self._model),
                temporary_weights(self._model, self._weights),
            ):
                output: Tensor = self._model.generate(  # type: ignore[operator]
                    input_ids=ids_NP,
                    attention_mask=mask_NP,
                    generation_config=_greedy_config(stopping),
                    logits_processor=[processor],
                    stopping_criteria=list(criteria),
                )
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(len(ids_NP)) from error
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise _out_of_memory(len(ids_NP)) from error
            raise EngineError(
                f"Hugging Face generate failed on {len(ids_NP)} prompts of up to "
                f"{ids_NP.shape[1]} tokens ({type(error).__name__}: {error})"
            ) from error
        return output

    def _completion(
        self,
        request: Request,
        prompt: list[int],
        row: list[int],
        logqs: list[float],
        stopping: StoppingRule,
    ) -> Completion:
        ids, text, reason = finish(row, self._tokenizer, stopping)
        kept = tuple(logqs[: len(ids)])
        if not all(map(math.isfinite, kept)):
            raise EngineError(
                f"the model's logits are not numbers for request {request.index} "
                f"({len(request.prompt_ids)} prompt tokens); check its weights and dtype"
            )
        return Completion(
            index=request.index,
            token_ids=ids,
            text=text,
            finish_reason=reason,
            logqs=kept,
            prompt_ids=tuple(prompt),
        )


class PolicySampler:
    """A logits processor after which greedy decoding samples from the policy.

    It must be the only one: it takes the scores that it is given for the raw logits.

    Args:
        policy: the sampling policy; a greedy one gets no noise.
        seeds: of the N rows' draws, unsigned 64-bit.
    """

    def __init__(self, policy: SamplingPolicy, seeds: Sequence[int]) -> None:
        self._policy = policy
        self._seeds = seed_tensor(list(seeds))
        self._logqs: list[Tensor] = []  # one [N] per step

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores whose argmax is the sampled token, ``[N, V]``."""
        seeds_N = self._seeds = self._seeds.to(scores.device)
        steps_N = torch.full_like(seeds_N, len(self._logqs))
        tokens_N, logqs_N = choose(scores, self._policy, seeds_N, steps_N)
        self._logqs.append(logqs_N)
        return one_hot_scores(tokens_N, scores)

    def token_logqs(self) -> Tensor:
        """log q of the tokens chosen so far: ``[N, T]``, nats, float64."""
        return torch.stack(self._logqs, dim=-1)


class StopStrings:
    """A stopping criterion: the rows whose response holds a stop string.

    Args:
        tokenizer: decodes the rows.
        stopping: the rule; EOS and the length are `generate`'s to see.
        num_rows: N.
    """

    def __init__(self, tokenizer: Tokenizer, stopping: StoppingRule, num_rows: int) -> None:
        self._eos = set(stopping.eos_token_ids)
        self._watchers = [StopWatcher(tokenizer, stopping.stop) for _ in range(num_rows)]
        self._is_done = [False] * num_rows
        self._num_steps = 0
        self.ends: list[int | None] = [None] * num_rows  # tokens up to the stop string, where seen

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        """Whether each row is done: ``[N]``, bool."""
        self._num_steps += 1
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self._is_done[row]:
                continue
            if self._watchers[row].push(token):
                self.ends[row] = self._num_steps
            self._is_done[row] = self.ends[row] is not None or token in self._eos
        return torch.tensor(self._is_done, device=input_ids.device)


def _out_of_memory(size: int) -> EngineMemoryError:
    return EngineMemoryError(
        f"out of memory on a batch of {size}: set a smaller batch_size (--gen-batch-size)"
    )


def _left_padded(batch: Sequence[Request], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts against the right edge, and a mask made from their lengths: ``[N, P]`` each."""
    width = max(len(request.prompt_ids) for request in batch)
    ids_NP = torch.zeros(len(batch), width, dtype=torch.int64)
    mask_NP = torch.zeros_like(ids_NP)
    for row, request in enumerate(batch):
        start = width - len(request.prompt_ids)
        ids_NP[row, start:] = torch.tensor(request.prompt_ids)
        mask_NP[row, start:] = 1
    return ids_NP.to(device), mask_NP.to(device)


def _greedy_config(stopping: StoppingRule) -> Any:
    from transformers import GenerationConfig

    eos = list(stopping.eos_token_ids)
    return GenerationConfig(
        max_new_tokens=stopping.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=eos or None,
        pad_token_id=eos[0] if eos else 0,  # fills rows that are done; cut off again
    )


@contextmanager
def _generating(model: Any) -> Iterator[None]:
    """Evaluation mode and no generation defaults of the model's own, for a while."""
    from transformers import GenerationConfig

    with ExitStack() as undo:
        for module in model.modules():
            if module.training:
                undo.callback(setattr, module, "training", True)
        # `generate` fills in what we leave open from here: top_k, penalties, forced tokens, …
        for holder in _configured(model):
            undo.callback(setattr, holder, "generation_config", holder.generation_config)
        model.eval()
        for holder in _configured(model):
            holder.generation_config = GenerationConfig()
        yield


def _configured(model: Any) -> list[Any]:
    """The model and, inside PEFT's wrapper, the base model: each has its own configuration."""
    holders = [model]
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        holders.append(model.get_base_model())
    return [holder for holder in holders if hasattr(holder, "generation_config")]
