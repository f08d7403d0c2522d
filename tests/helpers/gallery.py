"""A reference sampler, and engines that are broken as real ones have been.

Used by tests and benchmarks. The reference shares no sampling code with the library but for the
definition of q itself: it draws by inverse distribution function, with numpy's own generator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from seqproc.engines.base import Completion, Engine, Request, StoppingRule
from seqproc.engines.stopping import StopWatcher, finish
from seqproc.policy import SamplingPolicy, log_q
from seqproc.prompts import draw_seed

LogQ = Callable[[Tensor, SamplingPolicy], Tensor]


@dataclass(kw_only=True)
class _Draw:
    request: Request
    generator: np.random.Generator
    watcher: StopWatcher
    ids: list[int] = field(default_factory=list)
    logqs: list[float] = field(default_factory=list)
    beyond: int | None = None  # tokens still to come after the end; None before it

    def push(self, token: int, logq: float, stopping: StoppingRule, beyond: int) -> None:
        """Take the next token; after the one that ends the draw ``beyond`` more are to come."""
        self.ids.append(token)
        self.logqs.append(logq)
        if self.beyond is not None:
            self.beyond -= 1
        elif (
            self.watcher.push(token)
            or token in stopping.eos_token_ids
            or len(self.ids) == stopping.max_new_tokens
        ):
            self.beyond = beyond


class ReferenceEngine(Engine):
    """Samples with a transformers model by inverse distribution function; every part replaceable.

    Args:
        model: the causal language model that decodes.
        tokenizer: tells where a response ends.
        draws_from: the distribution that it really samples from.
        reports: the distribution whose log q it reports; None: the one that it samples from.
        seed_of: the seed that it really uses for a request.
        cut: what it makes of a finished response: (ids, num_tokens up to the end) → ids.
        beyond: tokens that it decodes after the end.
        dtype: what it says it computes in.
    """

    name: ClassVar[str] = "reference"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        draws_from: LogQ = log_q,
        reports: LogQ | None = None,
        seed_of: Callable[[Request], int] = lambda request: request.seed,
        cut: Callable[[list[int], str], list[int]] = lambda ids, reason: ids,
        beyond: int = 0,
        prompt_of: Callable[[Request], tuple[int, ...]] = lambda request: request.prompt_ids,
        batch_size: int = 512,
        dtype: str = "float32",
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._draws_from, self._reports = draws_from, reports or draws_from
        self._seed_of, self._cut, self._beyond = seed_of, cut, beyond
        self._prompt_of, self._dtype = prompt_of, dtype
        self.batch_size = batch_size

    @classmethod
    def from_source(cls, source: Any, **options: Any) -> ReferenceEngine:
        return cls(source.live_model(), source.tokenizer, **options)

    @property
    def max_context(self) -> int | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self._dtype}

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        waiting = sorted(requests, key=lambda request: len(request.prompt_ids))
        for start in range(0, len(waiting), self.batch_size or 1):
            batch = waiting[start : start + (self.batch_size or 1)]
            for draw in self._decode(batch, policy, stopping):
                yield self._completion(draw, stopping)

    @torch.no_grad()
    def _decode(
        self, batch: list[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> list[_Draw]:
        draws = [
            _Draw(
                request=request,
                generator=np.random.default_rng(self._seed_of(request)),
                watcher=StopWatcher(self._tokenizer, stopping.stop),
            )
            for request in batch
        ]
        ids, mask = _padded([self._prompt_of(request) for request in batch])
        cache = None
        for _ in range(stopping.max_new_tokens + self._beyond):
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
            cache, logits = output.past_key_values, output.logits[:, -1].double()
            self._step(draws, logits, policy, stopping)
            if all(draw.beyond == 0 for draw in draws):
                break
            ids = torch.tensor([[draw.ids[-1]] for draw in draws])
            mask = torch.cat([mask, torch.ones_like(ids)], dim=-1)
        return draws

    def _step(
        self, draws: list[_Draw], logits: Tensor, policy: SamplingPolicy, stopping: StoppingRule
    ) -> None:
        live = [row for row, draw in enumerate(draws) if draw.beyond != 0]
        draws, logits = [draws[row] for row in live], logits[live]
        sampled, reported = self._distributions(draws, logits, policy)
        tokens = self._tokens(draws, sampled)
        logqs = reported[range(len(draws)), tokens].tolist()
        for draw, token, logq in zip(draws, tokens, logqs, strict=True):
            draw.push(token, logq, stopping, self._beyond)

    def _distributions(
        self, draws: list[_Draw], logits: Tensor, policy: SamplingPolicy
    ) -> tuple[Tensor, Tensor]:
        """What it samples from, and what it reports; ``[R, V]`` nats each."""
        del draws
        return self._draws_from(logits, policy), self._reports(logits, policy)

    def _tokens(self, draws: list[_Draw], log_r: Tensor) -> list[int]:
        """The first tokens, in the order of ids, up to which there is more mass than u."""
        u = torch.tensor([self._uniform(draw) for draw in draws], dtype=log_r.dtype)
        masses = log_r.exp().cumsum(-1)
        found: list[int] = (masses <= (u * masses[:, -1]).unsqueeze(-1)).sum(-1).tolist()
        return found

    def _uniform(self, draw: _Draw) -> float:
        return float(draw.generator.random())

    def _completion(self, draw: _Draw, stopping: StoppingRule) -> Completion:
        upto, text, reason = finish(draw.ids, self._tokenizer, stopping)
        ids = self._cut(draw.ids, reason)
        if ids != list(upto):
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(
            index=draw.request.index,
            token_ids=tuple(ids),
            text=text,
            finish_reason=reason,
            logqs=tuple(draw.logqs[: len(ids)]),
            prompt_ids=self._prompt_of(draw.request),
        )


def _padded(prompts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def requests_of(num_draws: int, per_prompt: int, seed: int) -> tuple[list[Request], list[int]]:
    """Requests of the small model, whose prompts differ in tokens and length; and their prompts."""
    owners = [i // per_prompt for i in range(num_draws)]
    requests = [
        Request(
            index=i,
            prompt_ids=(40 + owner % 211, 30 + owner % 7, *(50,) * (owner % 4)),
            seed=draw_seed(seed, i),
        )
        for i, owner in enumerate(owners)
    ]
    return requests, owners


# ---------------------------------------------------------------- the gallery


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A fault, and what attribution should say of it."""

    name: str
    link: str  # value of `Link`
    words: str  # part of the description that names the cause
    build: Callable[[Any, Any], Engine]  # of a model and its tokenizer
    num_draws: int = 160  # that the test needs


def _sampling(draws_from: LogQ) -> Callable[[Any, Any], Engine]:
    """It samples from, and reports, another distribution."""
    return lambda model, tokenizer: ReferenceEngine(model, tokenizer, draws_from=draws_from)


def _with(**options: Any) -> Callable[[Any, Any], Engine]:
    return lambda model, tokenizer: ReferenceEngine(model, tokenizer, **options)


def top_k_50(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    least = logits.topk(min(50, logits.shape[-1]), dim=-1).values[:, -1:]
    return log_q(logits.masked_fill(logits < least, -math.inf), policy)


def crossing_token_excluded(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    """Keeps a token only if the mass up to and including it stays within top_p."""
    scaled = logits / policy.temperature
    p, order = scaled.softmax(-1).sort(descending=True, stable=True)
    kept_sorted = p.cumsum(-1) <= policy.top_p
    kept_sorted[:, 0] = True
    kept = torch.zeros_like(kept_sorted).scatter(-1, order, kept_sorted)
    return scaled.masked_fill(~kept, -math.inf).log_softmax(-1)


def top_p_before_temperature(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    kept = log_q(logits, replace(policy, temperature=1.0)) > -math.inf
    return (logits / policy.temperature).masked_fill(~kept, -math.inf).log_softmax(-1)


def _changed(**change: Callable[[float], float]) -> LogQ:
    def other(logits: Tensor, policy: SamplingPolicy) -> Tensor:
        values: dict[str, Any] = {n: f(getattr(policy, n)) for n, f in change.items()}
        return log_q(logits, replace(policy, **values))

    return other


def _without_eos(ids: list[int], reason: str) -> list[int]:
    return ids[:-1] if reason == "eos" else ids


def _without_end_of_stop(ids: list[int], reason: str) -> list[int]:
    return ids[:-1] if reason == "stop" else ids


def with_rounded_weights(model: Any) -> Any:
    """Parameters alone: engines keep the frequencies of positions in float32."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.bfloat16())
    return other


def _bfloat16(model: Any, tokenizer: Any) -> Engine:
    return ReferenceEngine(with_rounded_weights(model), tokenizer)


GALLERY = (
    Broken(name="top_k = 50 left on", link="policy", words="top_k = 50", build=_sampling(top_k_50)),
    Broken(
        name="temperature ignored",
        link="policy",
        words="temperature ignored",
        build=_sampling(_changed(temperature=lambda _: 1.0)),
    ),
    Broken(
        name="T off by 3 %",
        link="policy",
        words="temperature",
        build=_sampling(_changed(temperature=lambda t: 1.03 * t)),
        num_draws=512,
    ),
    Broken(
        name="top_p too high by 0.02",
        link="policy",
        words="top_p",
        build=_sampling(_changed(top_p=lambda p: min(p + 0.02, 1.0))),
        num_draws=256,
    ),
    Broken(
        name="top_p too low by 0.02",
        link="policy",
        words="top_p",
        build=_sampling(_changed(top_p=lambda p: p - 0.02)),
        num_draws=256,
    ),
    Broken(
        name="crossing token excluded",
        link="policy",
        words="crosses top_p",
        build=_sampling(crossing_token_excluded),
        num_draws=256,
    ),
    Broken(
        name="top-p before temperature",
        link="policy",
        words="before the temperature",
        build=_sampling(top_p_before_temperature),
        num_draws=256,
    ),
    Broken(
        name="EOS dropped",
        link="text and stop",
        words="said to end by eos",
        build=_with(cut=_without_eos),
    ),
    Broken(
        name="stop string cut too early",
        link="text and stop",
        words="said to end by stop",
        build=_with(cut=_without_end_of_stop),
    ),
    Broken(
        name="stop string one token late",
        link="text and stop",
        words="goes on after its",
        build=_with(beyond=1),
    ),
    Broken(
        name="one seed for all draws",
        link="sampled tokens",
        words="randomness is used twice",
        build=_with(seed_of=lambda _: 7),
    ),
    Broken(
        name="log q reported at T = 1",
        link="log q",
        words="log q reported with temperature ignored",
        build=_with(reports=_changed(temperature=lambda _: 1.0)),
    ),
    Broken(
        name="bfloat16 weights passed off as float32",
        link="weights",
        words="rounded to bfloat16",
        build=_bfloat16,
    ),
)
