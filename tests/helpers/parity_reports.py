"""A parity.json for tests of pages, of a check that failed or passed."""

from __future__ import annotations

from typing import Any

from seqproc._util import strict_json


def report(text: str = "vllm", *, holds: bool = False) -> str:
    """A report as `seqproc parity` writes it, with a text in every place that takes one."""
    check: dict[str, Any] = {
        "engine": {"name": text},
        "noise": None,
        "policy": {"temperature": 0.7, "top_p": 0.95, "do_sample": True},
        "num_prompts": 8,
        "num_draws": 64,
        "num_tokens": 1234,
        "logit_error": 1e-4,
        "assumed": None,
        "findings": [
            {
                "name": f"PIT {text}",
                "link": "policy",
                "p_value": 1.25e-9,
                "statistic": 6.5,
                "weight": 1.0,
                "is_exact": False,
                "at_any_time": False,
                "detail": text,
            },
            {"name": "support", "link": "policy", "p_value": 1.0, "statistic": float("nan")},
        ],
        "verdict": {
            "holds": holds,
            "false_alarms": 1e-3,
            "failed": [] if holds else [f"PIT {text}"],
            "num_tests": 2,
        },
        "certificate": None,
        "mismatch": {text: {"value": 0.0123, "standard_error": 0.0004}},
        "replay": None,
        "causes": [{"link": "policy", "description": text, "explains": True, "detail": text}],
        "worst": [
            {
                "why": text,
                "index": 3,
                "prompt": 1,
                "step": 17,
                "context": text,
                "token_id": 42,
                "text": text,
                "first_id": 43,
                "first_text": text,
                "log_q": float("-inf"),
                "mass_before": 0.99,
                "engine_log_q": -1.5,
            }
        ],
    }
    values = {
        "holds": holds,
        "is_decided": True,
        "is_complete": True,
        "model": text,
        "seed": 0,
        "checks": {text: [check]},
        "comparisons": [
            {
                "holds": True,
                "engines": [text, "hf"],
                "num_draws": 64,
                "num_identical": 60,
                "divergences": [{"is_explained": True}, {"is_explained": False}],
            }
        ],
    }
    return strict_json.dumps(values)
