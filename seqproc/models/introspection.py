"""Reads off a model and its configuration: token ids, lengths, whether there is a head.

Goes by what they hold and do, never by the names of classes. Knows nothing of how a model is
loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from seqproc.errors import ModelError

# Rows that tables of positions have beside the context's, for padding; OPT and BART have two.
_POSITION_OFFSET = 8

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


def vocab_size(model: Any) -> int:
    """V, the number of token ids that `model` embeds; ModelError when it does not tell."""
    if (number := num_embedded(model)) is not None:
        return number
    size = getattr(_text_config(getattr(model, "config", None)), "vocab_size", None)
    if size is None:
        raise ModelError(
            f"cannot tell the vocabulary size of a {type(model).__name__}: expected a causal "
            "language model with get_input_embeddings() or config.vocab_size"
        )
    return int(size)


def num_embedded(model: Any) -> int | None:
    """Rows of the table that token ids are looked up in; None for a model that has none to show."""
    with_table = getattr(model, "get_input_embeddings", None)
    weight = getattr(with_table() if with_table else None, "weight", None)
    return None if weight is None else int(weight.shape[0])


def eos_token_ids(model_or_config: Any, generation_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token id that ends a response, sorted.

    The ids of `generation_config` (default: the model's own), or where it names none those of
    the model's configuration, together with the tokenizer's EOS.

    Raises:
        ModelError: none of the three names an EOS token.
    """
    if generation_config is None:
        generation_config = getattr(model_or_config, "generation_config", None)
    config = getattr(model_or_config, "config", model_or_config)
    ids = _ids(generation_config) or _ids(config) or _ids(_text_config(config))
    ids |= _ids(tokenizer)
    if not ids:
        raise ModelError(
            "neither the model's generation_config and config nor the tokenizer has an "
            "eos_token_id; set one of them, so that responses can end"
        )
    return tuple(sorted(ids))


def context_length(config: Any) -> int | None:
    """The longest sequence [tokens] that the model was made for; None when it does not say."""
    config = _text_config(config)
    lengths = (getattr(config, key, None) for key in _CONTEXT_KEYS)
    return next((int(length) for length in lengths if length), None)


def has_position_table(model: Any, context: int) -> bool:
    """Whether `model` embeds positions by a table that ends where its context [tokens] does.

    Then it cannot read further at all, unlike a model whose positions are computed. Known by the
    number of rows, as such tables have many names.
    """
    with_table = getattr(model, "get_input_embeddings", None)
    of_tokens = with_table() if with_table else None
    return any(
        isinstance(module, torch.nn.Embedding)
        and module is not of_tokens
        and context <= module.num_embeddings <= context + _POSITION_OFFSET
        for module in model.modules()
    )


def _text_config(config: Any) -> Any:
    """The language part of a multimodal configuration; any other as it is."""
    return getattr(config, "text_config", None) or config


def _ids(holder: Any) -> set[int]:
    value = getattr(holder, "eos_token_id", None)
    if value is None:
        return set()
    return {int(one) for one in (value if isinstance(value, Iterable) else (value,))}


def require_logits(model: Any, num_tokens: int) -> None:
    """Refuse a model without a head. One with an output embedding has one; any other is asked."""
    of_output = getattr(model, "get_output_embeddings", None)
    if of_output is not None and of_output() is not None:
        return
    shape = getattr(_logits_of_one_token(model), "shape", None)
    if shape is None or len(shape) != 3 or shape[-1] < num_tokens:
        found = "none" if shape is None else f"some of shape {list(shape)} for one token"
        raise ModelError(
            f"a {type(model).__name__} gives no logits over the {num_tokens} tokens of its "
            f"tokenizer, but {found}: load it with its language-model head, as "
            "AutoModelForCausalLM does"
        )


def _logits_of_one_token(model: Any) -> Any:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    generators = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(generators):  # dropout of a model in training
            output = model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises that is not called like this
        raise ModelError(
            f"a {type(model).__name__} cannot be read with input_ids, attention_mask and "
            f"use_cache, as causal language models are: {first_line(error)}"
        ) from error
    return output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)


def first_line(error: Exception) -> str:
    """What an error says first, on one line, for an error of ours to quote."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.:')}" if lines else type(error).__name__
