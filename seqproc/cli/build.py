"""From options to the objects that do the work: configuration and processor."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seqproc.cli.config_file import read_settings
from seqproc.cli.manner import current_manner
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from seqproc.cli.options import EngineOptions, ModelOptions, PolicyOptions, ResponseOptions
    from seqproc.processor import SequenceProcessor


def build_processor(
    model: ModelOptions,
    policy: PolicyOptions,
    engine: EngineOptions | None = None,
    response: ResponseOptions | None = None,
    reward_weights: str | None = None,
) -> SequenceProcessor:
    """Open a model as the options say; neither engine nor scorer starts yet.

    Args:
        model: the model.
        policy: the policy.
        engine: the engine; None when nothing is to be sampled, or by engines of their own.
        response: when a response ends, for engines of their own.
        reward_weights: "TAG,ANSWER", of `tag_pref`.
    """
    configuration = build_config(policy, engine or response, reward_weights)
    engine_options = {} if engine is None else parse_engine_options(engine.engine_option or [])
    _quieten_libraries()
    from seqproc.models import resolve_device
    from seqproc.processor import SequenceProcessor
    from seqproc.scorers import keep_freed_memory

    if resolve_device(model.device).type == "cpu":
        keep_freed_memory()
    return SequenceProcessor.from_pretrained(
        model.model,
        engine="hf" if engine is None else engine.engine,
        dtype=model.dtype,
        device=model.device,
        adapter=model.adapter,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        config=configuration,
        engine_options=engine_options,
    )


def build_config(
    policy: PolicyOptions,
    response: ResponseOptions | None = None,
    reward_weights: str | None = None,
) -> dict[str, Any]:
    """The configuration file, or the defaults, under the options that were given.

    Raises:
        ConfigError: a file that is not valid, or a value that is not.
    """
    generation, precision = read_settings(policy.config)
    given: dict[str, Any] = {
        "temperature": policy.temperature,
        "top_p": policy.top_p,
        "tf_batch_size": policy.tf_batch_size,
        "tf_token_budget": policy.tf_token_budget,
        "tf_share_prompts": policy.tf_share_prompts,
        "do_sample": False if policy.greedy else None,
        "reward_weights": None if reward_weights is None else _pair(reward_weights),
    }
    if response is not None:
        given |= {
            "max_new_tokens": response.max_new_tokens,
            "gen_batch_size": response.gen_batch_size,
            "stop": tuple(response.stop) if response.stop else None,
        }
    changes = {name: value for name, value in given.items() if value is not None}
    if policy.entropy_fp64:
        precision = dataclasses.replace(precision, entropy_fp64=True)
    return {"generation": dataclasses.replace(generation, **changes), "precision": precision}


def _pair(text: str) -> tuple[float, ...]:
    """Numbers with a comma between them."""
    try:
        first, second = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--reward-weights must be two numbers, TAG,ANSWER, such as 0,1; got {text!r}"
        ) from error
    return first, second


def parse_engine_options(
    options: Sequence[str], given_as: str = "--engine-option"
) -> Mapping[str, Any]:
    """``KEY=VALUE`` pairs; a value that is JSON is what it says, any other a string.

    Args:
        options: the pairs.
        given_as: the option of the command line that errors name.

    Raises:
        ConfigError: an option without a key, or a key given twice.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{given_as} must be KEY=VALUE, got {option!r}")
        if key in parsed:
            raise ConfigError(f"{given_as} {key} is given twice")
        parsed[key] = _json_or_string(value)
    return parsed


def _json_or_string(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _quieten_libraries() -> None:
    """Keep the libraries' progress bars off anything that is not a terminal, or is to be quiet."""
    if sys.stderr.isatty() and not current_manner().quiet:
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
