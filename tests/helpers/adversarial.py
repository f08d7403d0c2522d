"""Rows of logits on which a search that does not sort them all could go wrong."""

from __future__ import annotations

import numpy as np
import torch

NEG_INF = float("-inf")
KINDS = ("gaussian", "peaked", "plateaus", "two_values", "holes", "geometric", "uniform")


def adversarial(kind: str, rows: int, vocabulary: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows on which a nucleus by few candidates could go wrong."""
    rng = np.random.default_rng([KINDS.index(kind), vocabulary])
    shape = (rows, vocabulary)
    if kind == "gaussian":  # nuclei of every width
        logits = rng.normal(size=shape) * rng.uniform(0.1, 6, size=(rows, 1))
    elif kind == "peaked":  # a few tokens far above many
        logits = rng.normal(size=shape)
        logits[:, rng.permutation(vocabulary)[:5]] += rng.uniform(0, 20, size=(rows, 5))
    elif kind == "plateaus":  # ties in groups, some across the first candidates
        logits = np.round(rng.normal(size=shape) * rng.uniform(0.5, 4, size=(rows, 1)))
    elif kind == "two_values":  # one great tie, above or below the rest
        logits = (rng.random(shape) < rng.random((rows, 1))) * rng.uniform(0, 9, size=(rows, 1))
    elif kind == "holes":  # impossible tokens, down to a single possible one
        logits = rng.normal(size=shape) * 2
        logits[rng.random(shape) < rng.random((rows, 1))] = NEG_INF
        logits[:, vocabulary // 2] = 0.5
    elif kind == "geometric":  # masses before each token are 1 − 2^(−j/k): cuts near thresholds
        logits = -np.arange(vocabulary) * np.log(2) / rng.integers(1, 60, size=(rows, 1))
        logits = rng.permuted(logits, axis=1)
    else:
        logits = np.full(shape, 3.0)
    return torch.from_numpy(logits).to(dtype)
