"""Configuration: the specification's defaults, every form, and errors that teach."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

from seqproc._util.kernels import KERNELS
from seqproc.config import (
    DEFAULT_STOP,
    GenerationConfig,
    NoGradProfile,
    OverrideProfile,
    PrecisionConfig,
    WithGradProfile,
    load_config,
    require_count,
    require_flag,
    torch_dtype,
)
from seqproc.errors import ConfigError
from seqproc.policy import SamplingPolicy

SPECIFIED_GENERATION = {
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 200,
    "do_sample": True,
    "num_return_sequences": 8,
    "gen_batch_size": 32,
    "tf_batch_size": 8,
    "rb_requires_grad": False,
}
SPECIFIED_EXAMPLE: dict[str, dict[str, Any]] = {
    "generation": {
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 64,
        "gen_batch_size": 16,
        "tf_batch_size": 8,
    },
    "precision": {
        "func_override": {"autocast": False, "dtype": "float32", "cast_params": True},
        "tf_nograd": {"autocast": False, "dtype": "float32", "cast_logits_fp32": True},
        "allow_tf32": True,
        "matmul_precision": "high",
        "entropy_fp64": False,
    },
}


OUR_GENERATION = {
    "stop": ("</answer>",),
    "tf_token_budget": None,
    "tf_share_prompts": True,
    "reward_weights": (0.5, 0.5),
}


def shown(message: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)


# Defaults.


def test_generation_defaults_are_the_specification_s():
    defaults = dataclasses.asdict(GenerationConfig())
    assert {name: defaults[name] for name in SPECIFIED_GENERATION} == SPECIFIED_GENERATION
    ours = {name: default for name, default in defaults.items() if name not in SPECIFIED_GENERATION}
    assert ours == OUR_GENERATION
    assert DEFAULT_STOP == ("</answer>",)


def test_fields_come_in_the_specified_order_so_that_they_can_be_positional():
    config = GenerationConfig(0.5, 0.9, 7, False, 2, 4, 3, True)
    assert [getattr(config, name) for name in SPECIFIED_GENERATION] == [
        0.5, 0.9, 7, False, 2, 4, 3, True,
    ]  # fmt: skip


def test_precision_defaults_are_the_specification_s():
    precision = PrecisionConfig()
    assert dict(precision.func_override) == {
        "autocast": False,
        "dtype": "float32",
        "cast_params": True,
    }
    for profile in (precision.tf_nograd, precision.tf_withgrad):
        assert dict(profile) == {"autocast": False, "dtype": "float32", "cast_logits_fp32": True}
    assert (precision.allow_tf32, precision.matmul_precision, precision.entropy_fp64) == (
        False,
        "high",
        False,
    )


def test_defaults_are_not_shared_between_instances():
    first, second = PrecisionConfig(), PrecisionConfig()
    first.tf_nograd.dtype = "float64"
    assert second.tf_nograd.dtype == "float32"


def test_the_policy_is_read_from_the_configuration():
    config = GenerationConfig(temperature=0.7, top_p=0.9, do_sample=False)
    assert config.policy == SamplingPolicy(temperature=0.7, top_p=0.9, do_sample=False)
    config.temperature = 2
    assert config.policy.temperature == 2.0


# Values.

BAD_GENERATION = [
    ("temperature", 0, "must lie in …do_sample=False"),
    ("temperature", -1.0, "must lie in …do_sample=False"),
    ("temperature", float("nan"), "must lie in …do_sample=False"),
    ("temperature", float("inf"), "must lie in …do_sample=False"),
    ("temperature", "1.0", "valid number"),
    ("temperature", True, "valid number"),
    ("temperature", None, "valid number"),
    ("top_p", 0, "greater than 0"),
    ("top_p", 1.01, "less than or equal to 1"),
    ("top_p", float("nan"), "greater than 0"),
    ("top_p", "0.9", "valid number"),
    ("max_new_tokens", 0, "greater than or equal to 1"),
    ("max_new_tokens", 2.0, "valid integer"),
    ("max_new_tokens", "2", "valid integer"),
    ("max_new_tokens", True, "valid integer"),
    ("num_return_sequences", -3, "greater than or equal to 1"),
    ("gen_batch_size", 0, "greater than or equal to 1"),
    ("tf_batch_size", 0, "greater than or equal to 1"),
    ("do_sample", 1, "valid boolean"),
    ("do_sample", "yes", "valid boolean"),
    ("rb_requires_grad", None, "valid boolean"),
    ("stop", "", "at least 1 character"),
    ("stop", ["</answer>", ""], "at least 1 character"),
    ("stop", [3], "valid string"),
    ("stop", 3, "valid tuple"),
]


@pytest.mark.parametrize(("name", "value", "expectation"), BAD_GENERATION)
def test_a_bad_value_is_refused_by_name_expectation_and_value(name, value, expectation):
    culprit = value[-1] if isinstance(value, list) else value
    message = shown(f"GenerationConfig.{name}…{expectation}…got {culprit!r}")
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**{name: value})
    with pytest.raises(ConfigError, match=message):
        load_config({"generation": {name: value}})


@pytest.mark.parametrize(("name", "value", "expectation"), BAD_GENERATION)
def test_a_bad_assignment_is_refused_and_changes_nothing(name, value, expectation):
    config = GenerationConfig(temperature=0.5, top_p=0.5, max_new_tokens=5)
    before = dataclasses.asdict(config)
    with pytest.raises(ConfigError, match=shown(f"GenerationConfig.{name}…{expectation}")):
        setattr(config, name, value)
    assert dataclasses.asdict(config) == before


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("temperature", 2, 2.0),
        ("top_p", 1, 1.0),
        ("max_new_tokens", 1, 1),
        ("do_sample", False, False),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", [], ()),
    ],
)
def test_a_good_value_is_accepted_and_assigned(name, value, stored):
    config = GenerationConfig()
    setattr(config, name, value)
    for made in (config, GenerationConfig(**{name: value})):
        assert getattr(made, name) == stored
        assert type(getattr(made, name)) is type(stored)


BAD_PRECISION = [
    ({"entropy_fp64": 1}, "PrecisionConfig.entropy_fp64: …valid boolean…got 1"),
    ({"allow_tf32": "no"}, "PrecisionConfig.allow_tf32: …valid boolean…got 'no'"),
    (
        {"matmul_precision": "low"},
        "PrecisionConfig.matmul_precision: …'highest', 'high' or 'medium'…got 'low'",
    ),
    ({"func_override": {"dtype": "fp8"}}, "OverrideProfile.dtype: …'float64'…got 'fp8'"),
    ({"func_override": {"cast_params": 0}}, "OverrideProfile.cast_params: …valid boolean…got 0"),
    ({"func_override": {"autocast": True}}, "OverrideProfile.autocast must be False…got True"),
    ({"tf_nograd": {"autocast": True}}, "NoGradProfile.autocast must be False…tf_withgrad"),
    ({"tf_nograd": {"dtype": torch.int64}}, "NoGradProfile.dtype: …got 'int64'"),
    ({"tf_withgrad": {"dtype": "int64"}}, "WithGradProfile.dtype: …'bfloat16'…got 'int64'"),
    ({"tf_withgrad": {"cast_logits_fp32": "x"}}, "WithGradProfile.cast_logits_fp32: …got 'x'"),
    ({"tf_nograd": "float64"}, "section 'tf_nograd' must be a mapping, got str"),
    ({"tf_nograd": []}, "section 'tf_nograd' must be a mapping, got list"),
]


@pytest.mark.parametrize(("section", "message"), BAD_PRECISION)
def test_a_bad_precision_is_refused(section, message):
    with pytest.raises(ConfigError, match=shown(message)):
        load_config({"precision": section})


@pytest.mark.parametrize(
    ("profile", "key", "value"),
    [
        (OverrideProfile(), "autocast", True),
        (NoGradProfile(), "autocast", True),
        (WithGradProfile(), "autocast", "yes"),
        (NoGradProfile(), "dtype", "quadruple"),
        (WithGradProfile(), "dtype", None),
        (OverrideProfile(), "cast_params", 1),
    ],
)
def test_a_profile_is_checked_on_assignment_by_name_and_by_key(profile, key, value):
    before = dict(profile)
    message = shown(f"{type(profile).__name__}.{key}…got {value!r}")
    with pytest.raises(ConfigError, match=message):
        setattr(profile, key, value)
    with pytest.raises(ConfigError, match=message):
        profile[key] = value
    with pytest.raises(ConfigError, match=message):
        profile.update({"dtype": "bfloat16"}, **{key: value})
    assert dict(profile) == before


def test_autocast_is_allowed_where_gradients_are():
    profile = WithGradProfile(autocast=True, dtype="bfloat16")
    profile.autocast = False
    profile["autocast"] = True
    assert profile.autocast


# Keys.


def test_an_unknown_key_is_refused_with_the_nearest_and_all_known_ones():
    message = shown(
        "unknown key 'temprature' in GenerationConfig: known keys are temperature, top_p, …"
        "; did you mean 'temperature'?"
    )
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(temprature=1.0)  # type: ignore[call-arg]
    config = GenerationConfig()
    with pytest.raises(ConfigError, match=message):
        config.temprature = 1.0  # type: ignore[attr-defined]
    assert not hasattr(config, "temprature")
    with pytest.raises(ConfigError, match=r"unknown key 'zzz' in GenerationConfig: known keys"):
        GenerationConfig(zzz=1)  # type: ignore[call-arg]


def test_every_problem_is_told_at_once():
    message = shown("GenerationConfig.top_p: …got 2; …unknown key 'topk'")
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(top_p=2, topk=50)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"generaton": {}}, "unknown section 'generaton' in config: known sections are generation"),
        ({"top_p": 0.9}, "unknown section 'top_p'…'top_p' belongs in the section 'generation'"),
        ({"precision": {"dtype": "float64"}}, "unknown key 'dtype' in PrecisionConfig: known keys"),
        ({"precision": {"tf_nogrd": {}}}, "unknown key 'tf_nogrd'…did you mean 'tf_nograd'?"),
        (
            {"precision": {"tf_nograd": {"dtpe": 1}}},
            "unknown key 'dtpe' in NoGradProfile: …did you mean 'dtype'?",
        ),
        ({"generation": {"tempreature": 1}}, "unknown key 'tempreature'…'temperature'"),
        ({"generation": 3}, "section 'generation' must be a mapping, got int"),
        ({"generation": []}, "section 'generation' must be a mapping, got list"),
        ({"generation": False}, "section 'generation' must be a mapping, got bool"),
        ({"generation": {1: 2}}, "section 'generation': keys must be strings, got 1"),
        (3, "config must be a GenerationConfig, a mapping…got int"),
        ([("generation", {})], "config must be…got list"),
    ],
)
def test_a_malformed_configuration_is_refused(config, message):
    with pytest.raises(ConfigError, match=shown(message)):
        load_config(config)


# Forms.


def test_the_specification_s_example_dict():
    generation, precision = load_config(SPECIFIED_EXAMPLE)
    assert dataclasses.asdict(generation) == {
        **SPECIFIED_GENERATION,
        "max_new_tokens": 64,
        "gen_batch_size": 16,
        **OUR_GENERATION,
    }
    assert dataclasses.asdict(precision) == {
        **SPECIFIED_EXAMPLE["precision"],
        "tf_withgrad": {"autocast": False, "dtype": "float32", "cast_logits_fp32": True},
        "kernels": KERNELS,
    }


@pytest.mark.parametrize("config", [None, {}, {"generation": {}}, {"generation": None}])
def test_nothing_means_the_defaults(config):
    assert load_config(config) == (GenerationConfig(), PrecisionConfig())


def test_a_generation_config_is_copied():
    mine = GenerationConfig(top_p=0.9)
    generation, precision = load_config(mine)
    assert generation == mine
    assert generation is not mine
    assert precision == PrecisionConfig()


def test_sections_may_be_records():
    made = load_config(
        {
            "generation": GenerationConfig(top_p=0.5),
            "precision": PrecisionConfig(tf_nograd=NoGradProfile(dtype="float64")),
        }
    )
    assert made[0].top_p == 0.5
    assert made[1].tf_nograd == NoGradProfile(dtype="float64")


def test_a_mapping_is_left_as_it_was():
    config = {"generation": {"stop": ["a"]}, "precision": {"tf_nograd": {"dtype": "float64"}}}
    _, precision = load_config(config)
    precision.tf_nograd.dtype = "bfloat16"
    assert config == {
        "generation": {"stop": ["a"]},
        "precision": {"tf_nograd": {"dtype": "float64"}},
    }


TOML = """
[generation]
temperature = 1
top_p = 0.95
stop = ["</answer>", "END"]

[precision]
entropy_fp64 = true

[precision.tf_nograd]
dtype = "float64"
"""


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_toml_file(tmp_path, kind):
    path = tmp_path / "run.toml"
    path.write_text(TOML, encoding="utf-8")
    generation, precision = load_config(kind(path))
    assert generation == GenerationConfig(top_p=0.95, stop=("</answer>", "END"))
    assert precision == PrecisionConfig(tf_nograd=NoGradProfile(dtype="float64"), entropy_fp64=True)


def test_a_toml_file_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*none\.toml: No"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[generation\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML: "):
        load_config(broken)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[generation]\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml is not UTF-8.*: byte 18 is 0xe9; save the"):
        load_config(latin)
    with pytest.raises(
        ConfigError, match=r"cannot read the configuration file 'a\\x00b': embedded"
    ):
        load_config("a\0b")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[generation]\ntop_p = 2.0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"GenerationConfig\.top_p: .* got 2\.0"):
        load_config(wrong)


# Profiles as mappings, and the two helpers.


def test_a_profile_reads_like_the_dict_that_it_replaces():
    profile = OverrideProfile()
    assert profile["dtype"] == "float32"
    assert profile.get("cast_params") is True
    assert profile.get("missing") is None
    assert profile.get("missing", 3) == 3
    assert list(profile) == profile.keys() == ["autocast", "dtype", "cast_params"]
    assert {**profile} == {"autocast": False, "dtype": "float32", "cast_params": True}
    profile["dtype"] = "float64"
    assert profile.dtype == "float64"
    profile.update({"dtype": "bfloat16"}, cast_params=False)
    assert (profile.dtype, profile.cast_params) == ("bfloat16", False)
    for attempt in (lambda: profile["dtyp"], lambda: profile.update(dtyp="float64")):
        with pytest.raises(ConfigError, match=r"unknown key 'dtyp' in OverrideProfile: known keys"):
            attempt()


def test_torch_dtype_knows_the_four_names():
    names = ["float64", "float32", "bfloat16", "float16"]
    assert [torch_dtype(name) for name in names] == [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    for name in ("int64", "quadruple", "tensor", ""):
        with pytest.raises(ConfigError, match=f"dtype must be one of float64, .*got '{name}'"):
            torch_dtype(name)


def test_require_flag():
    assert require_flag("with_grad", True) is True
    assert require_flag("with_grad", np.bool_(False)) is False
    values: tuple[Any, ...] = (1, 0, None, "False", [], np.ones(2))
    for value in values:
        with pytest.raises(ConfigError, match="with_grad must be True or False, got"):
            require_flag("with_grad", value)


def test_require_count():
    assert require_count("draws", 3) == 3
    for value in (0, -1, 1.0, "3", True, None):
        message = shown(f"draws must be an integer >= 1, got {value!r}")
        with pytest.raises(ConfigError, match=message):
            require_count("draws", value)


def test_a_config_error_is_a_value_error():
    with pytest.raises(ValueError, match="top_p"):
        GenerationConfig(top_p=2)
