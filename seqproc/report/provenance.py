"""What was run, and the command that runs it again: from the manifest alone.

A command names what the command line has an option for. The rest of the precision, and `stop = []`,
stand in a configuration file beside it; what neither can say is told in words.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.schema import DEFAULT_TOKEN_COLUMNS

CONFIG_FILE = "seqproc.toml"  # as the command calls the configuration file
# Defaults of the configuration: what a command need not say. Tests hold them against it.
PRECISION: Mapping[str, Any] = {
    "func_override": {"autocast": False, "dtype": "float32", "cast_params": True},
    "tf_nograd": {"autocast": False, "dtype": "float32", "cast_logits_fp32": True},
    "tf_withgrad": {"autocast": False, "dtype": "float32", "cast_logits_fp32": True},
    "allow_tf32": False,
    "matmul_precision": "high",
    "kernels": ["allocator", "attention", "nucleus", "packing", "products", "tangents"],
}
STOP = ["</answer>"]
REWARD_WEIGHTS = (0.5, 0.5)
# Options of vLLM that seqproc sets by itself, or by an option of its own.
_NOT_GIVEN = (
    "dtype",
    "disable_log_stats",
    "enable_lora",
    "generation_config",
    "logits_processors",
    "logprobs_mode",
    "max_lora_rank",
    "model",
    "revision",
    "skip_tokenizer_init",
    "tokenizer_revision",
    "trust_remote_code",
    "use_tqdm_on_load",
    "worker_extension_cls",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that makes a run again."""

    line: str  # for a POSIX shell
    config: str  # what the file `CONFIG_FILE` is to hold; empty: there is none
    notes: tuple[str, ...]  # what the command does not say


def command_of(manifest: Manifest) -> Command:
    """The command that makes a run of the same key, as far as one can."""
    config = _config(manifest)
    words = list(_sampling(manifest) if manifest.kind == "sample" else _scoring(manifest))
    if config:
        words += ["--config", CONFIG_FILE]
    return Command(line=shlex.join(words), config=config, notes=tuple(_notes(manifest)))


def _sampling(manifest: Manifest) -> Iterator[str]:
    spec = manifest.spec
    yield from ("seqproc", "sample")
    yield from _model(manifest)
    yield from ("--dataset", str(spec.get("dataset")), "--draws", str(spec.get("draws")))
    yield from ("--seed", str(spec.get("seed")))
    if spec.get("split") != "train":
        yield from ("--split", str(spec.get("split")))
    for name in ("data_dir", "max_prompts_pool"):
        if spec.get(name) is not None:
            yield from (f"--{name.replace('_', '-')}", str(spec[name]))
    if manifest.shard is not None:
        yield from ("--shard", "{}/{}".format(*manifest.shard))
    if spec.get("chat"):
        yield "--chat"
    yield from _policy(manifest)
    yield from ("--max-new-tokens", str(manifest.stopping.get("max_new_tokens")))
    stop = manifest.stopping.get("stop")
    if stop and stop != STOP:
        yield from (word for text in stop for word in ("--stop", str(text)))
    yield from _engine(manifest.engine)
    yield from _kept(manifest)


def _scoring(manifest: Manifest) -> Iterator[str]:
    yield from ("seqproc", "score", str(manifest.spec.get("source")))
    yield from _model(manifest)
    if manifest.spec.get("chat"):
        yield "--chat"
    yield from _policy(manifest)
    yield from _kept(manifest)


def _model(manifest: Manifest) -> Iterator[str]:
    spec, model = manifest.spec, manifest.model
    yield from ("--model", str(spec.get("model") or model.get("name")))
    if model.get("dtype") != "float32":
        yield from ("--dtype", str(model.get("dtype")))
    for name in ("adapter", "revision"):
        if spec.get(name) is not None:
            yield from (f"--{name}", str(spec[name]))
    options = manifest.engine.get("options")
    if isinstance(options, Mapping) and options.get("trust_remote_code"):
        yield "--trust-remote-code"


def _policy(manifest: Manifest) -> Iterator[str]:
    policy = manifest.policy
    if not policy.get("do_sample", True):
        yield "--greedy"
    yield from ("--temperature", json.dumps(policy.get("temperature")))
    yield from ("--top-p", json.dumps(policy.get("top_p")))
    if manifest.precision.get("entropy_fp64"):
        yield "--entropy-fp64"


def _engine(engine: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--engine", str(engine.get("name")))
    options = engine.get("options")
    given = dict(options) if isinstance(options, Mapping) else {}
    if engine.get("name") == "vllm" and "sampler" in engine:
        given["sampler"] = engine["sampler"]
    for name, value in given.items():
        if name not in _NOT_GIVEN and value is not None:
            yield from ("--engine-option", f"{name}={_option(value)}")


def _option(value: Any) -> str:
    """As `--engine-option` reads it: a string that is no JSON as it is, all else as JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def _kept(manifest: Manifest) -> Iterator[str]:
    reward = manifest.reward
    weights = (reward.get("tag"), reward.get("answer"))
    if reward.get("name") == "tag_pref" and weights != REWARD_WEIGHTS:
        yield from ("--reward-weights", "{},{}".format(*weights))
    if tuple(manifest.token_columns) != DEFAULT_TOKEN_COLUMNS:
        yield from (w for name in manifest.token_columns for w in ("--token-column", name))
    yield from ("--out", "RUN")


def _config(manifest: Manifest) -> str:
    """TOML of what has no option of its own, where it is not the default."""
    lines = []
    if manifest.kind == "sample" and manifest.stopping.get("stop") == []:
        lines += ["[generation]", "stop = []"]
    other = {
        name: manifest.precision[name]
        for name, default in PRECISION.items()
        if name in manifest.precision and manifest.precision[name] != default
    }
    if other:
        lines.append("[precision]")
        lines += [f"{name} = {_toml(value)}" for name, value in other.items()]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)  # strings, numbers and booleans are spelt as in TOML


def _notes(manifest: Manifest) -> Iterator[str]:
    name = manifest.reward.get("name")
    if name != "tag_pref":
        yield f"The reward {name!r} is not seqproc's own: it is given in Python, as reward=."
    if manifest.kind == "sample" and manifest.spec.get("model") != manifest.model.get("name"):
        yield "The model was handed over in Python under a name of its own."
    yield (
        "Rows also depend on the versions above, and on the weights, which are told by their "
        "digest. A run of the same key has the same rows, as far as the engine repeats itself."
    )


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """What was run: names and values, for a table."""
    policy, model, engine = manifest.policy, manifest.model, manifest.engine
    found = [
        ("state", _state(manifest)),
        ("draws", _draws(manifest)),
        ("kind", "sampled and scored" if manifest.kind == "sample" else "given, and scored"),
        ("dataset", _dataset(manifest)),
        ("seed", _text(manifest.spec.get("seed"))),
        ("model", f"{_text(model.get('name'))}, {_text(model.get('dtype'))}"),
        ("weights", _text(model.get("weights") or engine.get("weights"))),
        ("policy", _measure(policy)),
        ("a response ends", _ending(manifest)),
        ("engine", _text(engine.get("name"))),
        ("model runner", _text(engine.get("model_runner") or "")),
        ("sampler", _sampler(engine)),
        ("precision", _precision(manifest.precision)),
        ("reward", _text(manifest.reward)),
        ("kept per token", ", ".join(manifest.token_columns)),
        ("begun", manifest.created),
        ("last written", manifest.updated),
        ("seqproc", manifest.seqproc_version),
        ("versions", ", ".join(f"{name} {v}" for name, v in manifest.versions.items())),
        ("key", manifest.key),
    ]
    return [(name, value) for name, value in found if value]


def _state(manifest: Manifest) -> str:
    error = f" ({manifest.error})" if manifest.error else ""
    return manifest.state + error


def _draws(manifest: Manifest) -> str:
    done = f"{manifest.num_draws_done:,} of {manifest.num_own_draws:,} sampled and scored"
    shard = "" if manifest.shard is None else ", shard {}/{}".format(*manifest.shard)
    return f"{done}, {manifest.num_quarantined:,} in quarantine{shard}"


def _dataset(manifest: Manifest) -> str:
    spec = manifest.spec
    if manifest.kind == "score":
        return _text(spec.get("source"))
    pool = spec.get("max_prompts_pool")
    drawn = "" if pool is None else f", of {pool:,} prompts"
    chat = ", in the model's chat template" if spec.get("chat") else ""
    return f"{_text(spec.get('dataset'))}, split {_text(spec.get('split'))}{drawn}{chat}"


def _measure(policy: Mapping[str, Any]) -> str:
    if not policy.get("do_sample", True):
        return "greedy: the most probable token, always"
    return f"T = {_text(policy.get('temperature'))}, top_p = {_text(policy.get('top_p'))}"


def _ending(manifest: Manifest) -> str:
    stopping = manifest.stopping
    if not stopping:
        return ""
    stop = ", ".join(map(repr, stopping.get("stop") or [])) or "none"
    return (
        f"after {_text(stopping.get('max_new_tokens'))} tokens, at an EOS id "
        f"({_text(stopping.get('eos_token_ids'))}), or with a stop string ({stop})"
    )


def _sampler(engine: Mapping[str, Any]) -> str:
    by = engine.get("sampled_by")
    name = _text(engine.get("sampler") or "")
    return f"{name} ({_text(by)})" if by else name


def _precision(precision: Mapping[str, Any]) -> str:
    forward = precision.get("tf_nograd", {}).get("dtype")
    lifted = "float64" if precision.get("entropy_fp64") else "the same, float32 at least"
    return f"forward without gradients in {forward}, statistics in {lifted}"


def _text(value: Any) -> str:
    """A value of the manifest as text: mappings and lists with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value)
