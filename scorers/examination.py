"""Finds which of the scorer's shortcuts a model allows, by trying each on a few tokens, once.

The scorer does much that a plain forward does not: it pads several sequences into a batch, computes
a prompt once for all its responses, takes a model apart, and replaces its attention and products by
others with the same outcome. A model's code may rely on what is replaced, so that each shortcut is
taken as scoring takes it and compared with the model's plain forward of one sequence at a time. One
that gives other numbers is left out, with a line in the log that says why.

A model that does not predict a token from those before it is refused. Nothing goes by the name of a
class or a family.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from seqproc._util.arguments import require
from seqproc._util.isolation import in_turn
from seqproc._util.memory import is_out_of_memory
from seqproc.errors import ModelError
from seqproc.models.introspection import num_embedded
from seqproc.models.wrappers import without_adapters
from seqproc.scorers import precision
from seqproc.scorers.batching import Limits, TokenSequence, plan
from seqproc.scorers.forward import device_of, evaluating, forward_logits
from seqproc.scorers.kernels.attention import attention_in_order
from seqproc.scorers.kernels.products import layer_products
from seqproc.scorers.model_parts import BackboneAndHead, Mapped, SplitModel, WholeModel
from seqproc.scorers.overrides import resolve_mapping, widest

_LOGGER = logging.getLogger("seqproc")

# Lengths of prompts and responses tried: two prompts, with two responses each.
_LENGTHS = [(7, 5), (3, 9), (7, 1), (3, 2)]
_MOST_IDS = 1024  # the first of a vocabulary: what stands for an image often is among the last
_IDS_OF_A_STRANGER = 4  # of a model that does not tell the size of its vocabulary
_ROWS = 5  # of a chunk of the head

# Settings of a configuration that hold how far a token sees, and the length that they get while a
# model is tried: shorter than the sequences, or a fault beyond it would not show.
_WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk")
_WINDOW = 4

# How far log p may be from that of the plain forward, relative to how far a step's log p spread.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_ROUNDINGS = 32  # of the largest logit, which log p may be off besides
_NEGLIGIBLE = 50.0  # nats below the likeliest token: further down nothing is compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcuts:
    """What scoring does otherwise than a plain forward of one sequence at a time."""

    attention_in_order: bool = True  # see `seqproc.scorers.kernels.attention`
    products: bool = True  # see `seqproc.scorers.kernels.products`
    batches: bool = True  # several sequences, padded, in a forward
    parts: bool = True  # backbone and head on their own, see `seqproc.scorers.model_parts`
    shared_prompts: bool = True  # a prompt once for all its responses in a batch

    @contextlib.contextmanager
    def scope(self, model: nn.Module) -> Iterator[None]:
        """A scope in which the model's forward takes those that change how it computes."""
        with contextlib.ExitStack() as stack:
            if self.attention_in_order:
                stack.enter_context(attention_in_order(without_adapters(model)))
            if self.products:
                stack.enter_context(layer_products(device_of(model)))
            yield

    def parts_of(self, model: nn.Module, vocab_size: int) -> SplitModel:
        """The model as scoring calls it."""
        if not self.parts:
            return WholeModel(model, vocab_size)
        parts = BackboneAndHead(model, vocab_size, tiled_products=self.products)
        parts.can_share_prompts = self.shared_prompts
        return parts


_PLAIN = Shortcuts(**{f.name: False for f in fields(Shortcuts)})

# What is said when a shortcut is left out, and which others it takes.
_WITHOUT = {
    "attention_in_order": "scoring by the model's own attention, where rounding depends on a batch",
    "products": "scoring by PyTorch's own products, which take more time",
    "batches": "scoring one sequence at a time, which takes more time",
    "parts": "scoring on the model's own logits, which takes more memory",
    "shared_prompts": "scoring without shared prompts, which takes more time",
}
_TAKES = {"shared_prompts": ("batches", "parts")}


@in_turn()
def examine(model: nn.Module) -> tuple[SplitModel, Shortcuts]:
    """The model as scoring calls it, and the shortcuts that it allows.

    Raises:
        ModelError: the model cannot be called with token ids and a mask alone, gives no logits, or
            is not causal.
    """
    require("model", model, nn.Module, "a causal language model in torch", ModelError)
    if any(p.is_meta for p in model.parameters()):
        raise ModelError(
            f"the parameters of this {type(model).__name__} are on the device 'meta', which has no "
            "numbers: load it without init_empty_weights or a device_map that offloads"
        )
    with torch.no_grad(), _as_scored(model), _narrow_windows(model):
        probe = _Probe(model)
        shortcuts = probe.allowed()
    return shortcuts.parts_of(model, probe.expected.shape[-1]), shortcuts


def split_model(model: nn.Module) -> SplitModel:
    """The model's parts, examined; or the model whole, with a line in the log that says why."""
    return examine(model)[0]


class _Probe:
    """A few sequences, and the logits that the model's plain forward gives for each alone."""

    def __init__(self, model: nn.Module) -> None:
        _refuse_encoder_decoder(model)
        self._model = model
        self._sequences = _sequences(num_embedded(model) or _IDS_OF_A_STRANGER)
        plain = [_forward(model, _ids(s)[:-1]) for s in self._sequences]
        pairs = zip(self._sequences, plain, strict=True)
        self.expected = torch.cat([logits[len(s.prompt_ids) - 1 :] for s, logits in pairs])
        if not bool(self.expected.isnan().any()):
            for sequence, logits in zip(self._sequences, plain, strict=True):
                _require_causal(model, _ids(sequence), logits)

    def allowed(self) -> Shortcuts:
        """As many shortcuts as give the expected logits."""
        if bool(self.expected.isnan().any()):
            _LOGGER.warning("scoring by plain forwards: the model's logits are not numbers")
            return _PLAIN
        if self._lost(Shortcuts()) is None:
            return Shortcuts()
        return self._one_by_one()

    def _one_by_one(self) -> Shortcuts:
        if reason := self._lost(_PLAIN):
            raise ModelError(
                f"a {type(self._model).__name__} called by torch.func.functional_call differs from "
                f"the model itself ({reason}), so that it cannot be scored: its forward must read "
                "parameters and buffers from its modules, and give the same each time"
            )
        allowed = _PLAIN
        for name, without in _WITHOUT.items():
            if not all(getattr(allowed, other) for other in _TAKES.get(name, ())):
                continue
            trial = dataclasses.replace(allowed, **{name: True})
            if (reason := self._lost(trial)) is None:
                allowed = trial
            else:
                _LOGGER.warning("%s: %s", without, reason)
        return allowed

    def _lost(self, shortcuts: Shortcuts) -> str | None:
        """Why scoring by these shortcuts is not the plain forward; None when it is."""
        try:
            mapping = resolve_mapping(self._model, None, None, [])[0]
            alone = self._logits(shortcuts, None, share=False)
            mapped = self._logits(shortcuts, mapping, share=shortcuts.shared_prompts)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return str(error) or type(error).__name__
        return _difference(alone, self.expected) or _difference(mapped, self.expected)

    def _logits(self, shortcuts: Shortcuts, mapping: Mapped, *, share: bool) -> Tensor:
        """Logits ``[R, V]`` of all responses, in order, as scoring computes them."""
        parts = shortcuts.parts_of(self._model, self.expected.shape[-1])
        found: dict[int, Tensor] = {}
        most = None if shortcuts.batches else 1
        for batch in plan(
            self._sequences, Limits(tokens=1024, sequences=most, share_prompts=share)
        ):
            batch = batch.to(device_of(self._model))
            with shortcuts.scope(self._model):
                states = parts.hidden_states(batch, mapping)
                head = parts.head_tensors(mapping)
                logits = torch.cat([parts.logits(some, head) for some in states.split(_ROWS)])
            found |= dict(zip(batch.indices, logits.split(batch.lengths), strict=True))
        return torch.cat([found[i] for i in range(len(self._sequences))])


@contextlib.contextmanager
def _as_scored(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and exact products, at the model's own precision."""
    with (
        evaluating(model),
        precision.matmul_mode(allow_tf32=False, precision="highest"),
        precision.autocast(device_of(model), None),
        precision.exact_forward(widest(p.dtype for p in model.parameters())),
    ):
        yield


@contextlib.contextmanager
def _narrow_windows(model: nn.Module) -> Iterator[None]:
    """Attention that sees less far than the sequences tried reach, for a scope."""
    config: Any = getattr(without_adapters(model), "config", None)
    config = getattr(config, "text_config", None) or config
    lengths = {name: getattr(config, name, None) for name in _WINDOWS}
    longer = {n: v for n, v in lengths.items() if isinstance(v, int) and v > _WINDOW}
    for name in longer:
        setattr(config, name, _WINDOW)
    try:
        yield
    finally:
        for name, length in longer.items():
            setattr(config, name, length)


def _sequences(vocabulary: int) -> list[TokenSequence]:
    drawn, most = torch.Generator().manual_seed(0), min(vocabulary, _MOST_IDS)
    ids = torch.randint(most, (len(_LENGTHS), max(map(sum, _LENGTHS))), generator=drawn)
    prompts = {length: ids[n] for n, (length, _) in enumerate(_LENGTHS)}
    return [
        TokenSequence(prompt_ids=prompts[p][:p], response_ids=row[-r:])
        for row, (p, r) in zip(ids, _LENGTHS, strict=True)
    ]


def _ids(sequence: TokenSequence) -> Tensor:
    return torch.cat([sequence.prompt_ids, sequence.response_ids])


def _forward(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits ``[L, V]``; `ModelError` when the model is not one that tokens alone can be put to."""
    ids = ids[None].to(device_of(model))
    name = type(model).__name__
    try:
        logits = forward_logits(model, ids, torch.ones_like(ids))
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"a {name} cannot be scored: called with input_ids and attention_mask it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise ModelError(
            f"a {name} cannot be scored: expected logits [1, {ids.shape[1]}, vocabulary] for "
            f"{ids.shape[1]} tokens, got {list(logits.shape)}; load it as a causal language model"
        )
    return logits[0]


def _refuse_encoder_decoder(model: Any) -> None:
    config: Any = getattr(without_adapters(model), "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"a {type(model).__name__} is an encoder and a decoder (its configuration says so), "
            "and seqproc scores causal language models, which read a prompt and its response as "
            "one sequence"
        )


def _require_causal(model: nn.Module, ids: Tensor, before: Tensor) -> None:
    """Refuse a model in which a last token changes ``before``, the logits without it."""
    changed = _difference(_forward(model, ids)[:-1], before)
    if changed is None:
        return
    last = len(ids) - 1
    name = type(model).__name__
    if _difference(_forward(model, ids[:-1]), before):
        raise ModelError(
            f"a {name} gives other logits each time that it reads the same tokens ({changed}), "
            "also in evaluation mode, so that it has no log-probabilities to score"
        )
    raise ModelError(
        f"a {name} is not causal: with a token at position {last} its logits at earlier positions "
        f"changed ({changed}). Teacher forcing needs a model that predicts each token from those "
        "before it alone, e.g. one of AutoModelForCausalLM with is_decoder=True"
    )


def _difference(found: Tensor, expected: Tensor) -> str | None:
    """How logits ``[R, V]`` differ by more than rounding; None when they do not.

    What is compared is log p, of tokens that matter: a bias of -1e38 must not set the scale.
    """
    if found.shape != expected.shape:
        return f"logits {list(found.shape)} instead of {list(expected.shape)}"
    found, expected = found.cpu(), expected.cpu()  # float64 is not on every device
    ours, own = (x.double().log_softmax(-1) for x in (found, expected))
    depth = own.amax(-1, keepdim=True) - own
    matters = depth < _NEGLIGIBLE
    gap = (ours - own).abs().masked_fill(~matters, 0.0).amax(-1)
    spread = depth.masked_fill(~matters, 0.0).amax(-1)
    rounding = torch.finfo(expected.dtype).eps * expected.double().masked_fill(~matters, 0.0)
    allowed = _TOLERANCE[expected.dtype] * spread + _ROUNDINGS * rounding.abs().amax(-1)
    excess = ~(gap <= allowed)
    return f"log p is off by {float(gap[excess].max()):.2g} nats" if bool(excess.any()) else None
