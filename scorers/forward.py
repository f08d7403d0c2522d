"""One forward pass of a causal language model, with or without a parameter mapping.

Knows how to call a model so that its logits mean what they should: no cache, no dropout, positions
that do not depend on padding. Knows nothing of policies or sequences.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqproc.errors import ModelError
from seqproc.models.wrappers import without_adapters
from seqproc.scorers.swapping import Swapped


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives; the CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a scope; every submodule gets back the mode it had."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def whole_embedding_gradients() -> AbstractContextManager[Any]:
    """A scope in which a gradient reaches every row of an embedding.

    Models keep gradients from the row of their padding token (``padding_idx``). But padding never
    reaches a score, so that what would reach this row is of a token that was read.
    """
    if not torch.is_grad_enabled():
        return contextlib.nullcontext()
    return Swapped({functional.embedding: _embedding})


def _embedding(
    input: Tensor, weight: Tensor, _: int | None = None, *others: Any, **named: Any
) -> Tensor:
    named.pop("padding_idx", None)
    return functional.embedding(input, weight, None, *others, **named)


def forward_logits(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    mapping: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Logits ``[N, L, V]`` for ``input_ids`` and ``attention_mask``, both ``[N, L]``.

    Args:
        model: a causal language model; returns logits, or an object that has them.
        input_ids: int64 token ids.
        attention_mask: 1 on real tokens. With left padding, position ids are derived from it.
        mapping: parameters and buffers for `torch.func.functional_call`; None: the live module.
    """
    arguments = _arguments(model, input_ids, attention_mask)
    if mapping is None:
        output = model(**arguments)
    else:
        output = torch.func.functional_call(model, dict(mapping), args=(), kwargs=arguments)
    return _logits_of(model, output)


def _logits_of(model: nn.Module, output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ModelError(
        f"a {type(model).__name__} gives no logits, it returned a {type(output).__name__}: "
        "a model is scored with its head, as AutoModelForCausalLM loads it"
    )


def _arguments(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "use_cache": False,
    }
    left_padded = not bool(attention_mask[:, 0].all())
    if left_padded and _accepts(model, "position_ids"):
        arguments["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return arguments


def _accepts(model: Any, name: str) -> bool:
    # A PEFT model forwards whatever it gets; what counts is the model inside.
    return name in inspect.signature(without_adapters(model).forward).parameters
