"""What the names of a page must hold once its blocks have run: its numbers, found in another way.

Each function gives, for each number that the page computes, that number and another derivation of
it: forward mode against backward mode, weights against derivatives, a solution put back into its
equation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Pairs = dict[str, tuple[float, float]]


def of_cookbook(names: dict[str, Any]) -> Pairs:
    """Pairs that agree to 1e-3, relative to the second."""
    slopes, h, eta, n = names["slopes"], names["h"], names["eta"], names["N"]
    score = np.array([float(d.logqs.sum()) for d in slopes])
    along = np.array([float(d.rb_entropy.sum()) for d in slopes])
    advantages = names["advantages"].flatten().double().numpy()
    policy_slope = (advantages * score).mean()
    weights = names["sp"].per_sequence_grads(
        names["sequences"], of="logq", project=names["by_kernel"]
    )
    fisher = names["sp"].weighted_grad(names["sequences"], weights / n, of="logq")
    left = names["plus"](fisher, names["damping"], names["by_kernel"])
    gradient, v = names["gradient"], names["v"]
    pairs = {
        "differences": (names["difference"].value, along.mean()),
        "importance weights": (
            names["change"].value / eta,
            along.mean() + ((h - h.mean()) * score).mean(),
        ),
        "∇H along v": (names["along_v"], names["slope"].value),
        "∇J along v": (
            names["dot"](gradient, v),
            policy_slope + names["beta"] * names["slope"].value,
        ),
        "(F + λ)d along g": (names["dot"](left, gradient), names["dot"](gradient, gradient)),
        "(F + λ)d": (names["dot"](left, left), names["dot"](gradient, gradient)),
    }
    return {name: (float(one), float(other)) for name, (one, other) in pairs.items()}


def of_controls(names: dict[str, Any]) -> np.ndarray:
    """Standard errors by which the mean of each control is from 0; of those that are not always 0.

    With top_p = 1 the head mass is always 1, and the control of the two-point entropy always 0.
    """
    controls = names["controls"][:, names["controls"].any(axis=0)]
    return controls.mean(axis=0) / (controls.std(axis=0, ddof=1) / np.sqrt(len(controls)))
