"""A Llama (or Qwen2) forward in plain numpy float64: the reference for true-fp64 scoring.

Written from the architecture (RMSNorm, rotary positions, grouped-query attention, SwiGLU), one
sequence and one head at a time. The model is read for its numbers only; the rotary frequencies are
its own float32 buffer, taken as exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def llama_logits(model: Any, ids: list[int]) -> np.ndarray:
    """Logits ``[L, V]`` of one sequence, in float64."""
    config = model.config
    weights = {n: t.detach().double().numpy() for n, t in model.state_dict().items()}
    frequencies = model.model.rotary_emb.inv_freq.double().numpy()
    x = weights["model.embed_tokens.weight"][ids]
    for i in range(config.num_hidden_layers):
        own = {
            name.removeprefix(f"model.layers.{i}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{i}.")
        }
        normed = rms_norm(x, own["input_layernorm.weight"], config.rms_norm_eps)
        x = x + attention(normed, own, config, frequencies)
        normed = rms_norm(x, own["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = linear(normed, own, "mlp.gate_proj")
        gated = gate / (1 + np.exp(-gate)) * linear(normed, own, "mlp.up_proj")
        x = x + linear(gated, own, "mlp.down_proj")
    x = rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    tied = config.tie_word_embeddings
    return x @ weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """x·Wᵀ + b, where there is a b."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    """x / √(mean x² + ε), scaled."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def attention(
    x: np.ndarray, weights: dict[str, np.ndarray], config: Any, frequencies: np.ndarray
) -> np.ndarray:
    """Causal grouped-query attention, head by head."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    queries, keys, values = (linear(x, weights, f"self_attn.{n}_proj") for n in "qkv")
    mixed = []
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        shared = head // (heads // groups)
        theirs = slice(shared * size, (shared + 1) * size)
        query, key = (rotate(t, frequencies) for t in (queries[:, mine], keys[:, theirs]))
        mixed.append(causal_softmax(query @ key.T / np.sqrt(size)) @ values[:, theirs])
    return linear(np.concatenate(mixed, axis=-1), weights, "self_attn.o_proj")


def rotate(x: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Turn the pairs (x_k, x_{k + d/2}) of position t by the angle t·f_k."""
    angle = np.arange(len(x))[:, None] * frequencies
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        ],
        axis=-1,
    )


def causal_softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax of each row over the positions up to its own."""
    weights = np.tril(np.exp(scores - scores.max(-1, keepdims=True)))
    return weights / weights.sum(-1, keepdims=True)
