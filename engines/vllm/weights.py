"""The weights that a running vLLM samples with: its base model's, and a LoRA adapter's.

Base weights go in as a checkpoint on disk, which vLLM reads again; an adapter goes in as another
adapter. Knows vLLM and the source; nothing about requests.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from seqproc.errors import EngineError
from seqproc.models.export import export_adapter, export_base, lora_adapter
from seqproc.models.fingerprint import version
from seqproc.models.source import Checkpoint, ModelSource
from seqproc.models.weights import (
    is_adapter,
    raise_for,
    shapes,
    temporary_weights,
    validate_weights,
    weights_directory,
)

_Stamp = tuple[tuple[int, int], ...]  # storage and version of each parameter

_PREFIX = "seqproc-weights-"
_HEAD = "lm_head.weight"  # may be left out of a checkpoint where it is tied to the embedding


class VLLMWeights:
    """Loads weights into a `vllm.LLM`, and tells which it holds.

    Args:
        llm: the running vLLM, started with our worker extension.
        checkpoint: what it was started on.
        source: where the checkpoint came from; needed to load mappings.

    Attributes:
        lora: vLLM's request for the adapter that every prompt goes with; None without one.
    """

    def __init__(self, llm: Any, checkpoint: Checkpoint, source: ModelSource | None) -> None:
        self._llm: Any = llm  # None when closed
        self._checkpoint = checkpoint
        self._source = source
        # Of the own weights in vLLM's base model; None while it has others.
        self._base_stamp: _Stamp | None = self._stamp()
        self._adapter_files: tempfile.TemporaryDirectory[str] | None = None
        self._lora_ids = itertools.count(1)
        self._digest: str | None = None  # read from the workers since the last load
        self.lora = None if checkpoint.adapter is None else self._request(checkpoint.adapter)

    def load(self, weights: Mapping[str, Tensor] | str | os.PathLike[str] | None) -> None:
        """See `Engine.load_weights`."""
        self._digest = None
        if isinstance(weights, Mapping):
            self._load_mapping(weights)
        elif weights is not None:
            self._load_directory(weights_directory(weights))
        elif self._source is not None and self._source.is_live:
            self._load_mapping({})
        else:
            self._restore_base()
            self._use_adapter(self._checkpoint.adapter)
        self._llm.reset_prefix_cache()

    def fingerprint(self) -> str:
        """Digest of what the workers hold, read once after each load."""
        if self._digest is None:
            lora_id = None
            if self.lora is not None:
                lora_id = self.lora.lora_int_id
                self._llm.llm_engine.add_lora(self.lora)  # unless it is there already
            digests = self._llm.collective_rpc("seqproc_fingerprint", args=(lora_id,))
            joined = hashlib.sha256("".join(digests).encode()).hexdigest()[: len(digests[0])]
            digest: str = digests[0] if len(digests) == 1 else joined
            self._digest = digest
        return self._digest

    def close(self) -> None:
        """Let vLLM go, and remove files of ours; may be called twice."""
        self._llm = None
        self._remove_adapter_files()

    def _remove_adapter_files(self) -> None:
        if self._adapter_files is not None:
            self._adapter_files.cleanup()
            self._adapter_files = None

    def _load_mapping(self, weights: Mapping[str, Tensor]) -> None:
        if self._source is None:
            raise EngineError(
                "this vLLM engine was made of a checkpoint and knows no live model, whose "
                "parameters a mapping names: make it with VLLMEngine.from_source, or load a "
                "directory"
            )
        model = self._source.live_model()
        changed = validate_weights(model, weights)
        if lora_adapter(model) is not None:
            self._require_lora()
        is_base_changed = any(".lora_" not in name for name in changed)
        files = tempfile.TemporaryDirectory(prefix=_PREFIX)
        try:
            with temporary_weights(model, changed):
                adapter = export_adapter(model, files.name)
                if is_base_changed or not changed or not self._has_own_base:
                    self._export_and_reload(model)
                    self._base_stamp = None if is_base_changed else self._stamp()
            self._use_adapter(adapter, files)
        except BaseException:
            files.cleanup()
            raise

    def _export_and_reload(self, model: Any) -> None:
        dtype = str(self._llm.llm_engine.model_config.dtype).removeprefix("torch.")
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
            export_base(model, directory, dtype)
            self._reload(directory)

    def _load_directory(self, path: Path) -> None:
        if is_adapter(path):
            self._require_lora()
            self._restore_base()
            self._use_adapter(str(path))
            return
        self._require_same_shapes(path)
        self._reload(str(path))
        self._use_adapter(self._checkpoint.adapter)

    def _restore_base(self) -> None:
        if self._has_own_base:
            return
        if self._source is not None and self._source.is_live:
            self._export_and_reload(self._source.live_model())
        else:
            self._reload(self._own_directory())
        self._base_stamp = self._stamp()

    def _reload(self, directory: str) -> None:
        self._base_stamp = None
        self._llm.collective_rpc("seqproc_reload", args=(directory,))

    @property
    def _has_own_base(self) -> bool:
        return self._base_stamp == self._stamp()

    def _stamp(self) -> _Stamp:
        """What training a live source's base model changes; nothing for a checkpoint."""
        if self._source is None or not self._source.is_live:
            return ()
        return tuple(
            (param.data_ptr(), version(param))
            for name, param in self._source.live_model().named_parameters()
            if ".lora_" not in name
        )

    def _own_directory(self) -> str:
        """Where the checkpoint that vLLM started on lies; one of the hub's is in its cache."""
        if Path(self._checkpoint.path).is_dir():
            return self._checkpoint.path
        from huggingface_hub import snapshot_download

        return snapshot_download(
            self._checkpoint.path, revision=self._checkpoint.revision, local_files_only=True
        )

    def _require_same_shapes(self, path: Path) -> None:
        """vLLM itself would leave out what a checkpoint lacks, and fail half-way at the rest."""
        expected, found = shapes(Path(self._own_directory())), shapes(path)
        config = self._llm.llm_engine.model_config.hf_config.get_text_config()
        if config.tie_word_embeddings:
            expected.pop(_HEAD, None)
            found.pop(_HEAD, None)
        raise_for(path, "lacks", set(expected) - set(found))
        raise_for(path, "holds what the model has no place for:", set(found) - set(expected))
        raise_for(
            path,
            "has another shape for",
            [name for name, shape in expected.items() if found[name] != shape],
        )

    def _require_lora(self) -> None:
        if self._llm.llm_engine.vllm_config.lora_config is None:
            raise EngineError(
                "vLLM was started without LoRA and cannot take an adapter now: start the engine "
                "with the option enable_lora=True (and max_lora_rank, if it exceeds 16), or on a "
                "model that has an adapter"
            )

    def _use_adapter(
        self, path: str | None, files: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        """Send every prompt with this adapter. Its files stay: vLLM may read them again."""
        old, new = self.lora, None
        if path is not None:
            new = self._request(path)
            self._llm.llm_engine.add_lora(new)
        self.lora = new
        if old is not None:
            self._llm.llm_engine.remove_lora(old.lora_int_id)
        self._remove_adapter_files()
        self._adapter_files = files
        if new is None:
            self._remove_adapter_files()

    def _request(self, path: str) -> Any:
        from vllm.lora.request import LoRARequest

        lora_id = next(self._lora_ids)
        return LoRARequest(f"adapter-{lora_id}", lora_id, path)
