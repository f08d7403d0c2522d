"""A GPT-2 forward in plain numpy float64: learned absolute positions, LayerNorm, tanh-GELU."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.llama_oracle import causal_softmax


def gpt2_logits(model: Any, ids: list[int]) -> np.ndarray:
    """Logits ``[L, V]`` of one sequence, in float64."""
    config = model.config
    weights = {n: t.detach().double().numpy() for n, t in model.state_dict().items()}
    embedding = weights["transformer.wte.weight"]
    x = embedding[ids] + weights["transformer.wpe.weight"][: len(ids)]
    for i in range(config.n_layer):
        block = f"transformer.h.{i}"
        normed = layer_norm(x, weights, f"{block}.ln_1", config.layer_norm_epsilon)
        query, key, value = np.split(affine(normed, weights, f"{block}.attn.c_attn"), 3, axis=-1)
        size = config.n_embd // config.n_head
        mixed = [
            causal_softmax(query[:, h] @ key[:, h].T / np.sqrt(size)) @ value[:, h]
            for h in (slice(k * size, (k + 1) * size) for k in range(config.n_head))
        ]
        x = x + affine(np.concatenate(mixed, axis=-1), weights, f"{block}.attn.c_proj")
        normed = layer_norm(x, weights, f"{block}.ln_2", config.layer_norm_epsilon)
        hidden = gelu(affine(normed, weights, f"{block}.mlp.c_fc"))
        x = x + affine(hidden, weights, f"{block}.mlp.c_proj")
    return layer_norm(x, weights, "transformer.ln_f", config.layer_norm_epsilon) @ embedding.T


def affine(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """x·W + b: GPT-2 stores its weights transposed."""
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def layer_norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    """(x − mean) / √(variance + ε), scaled and moved."""
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU in its tanh form."""
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
