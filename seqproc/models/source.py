"""`ModelSource`: where an engine takes its weights from.

A source is a checkpoint on disk or hub, or a live model in memory. It serves engines that want
either: `live_model` loads a checkpoint once, when first asked; `checkpoint` is the path itself, or
for a live model a private export of its weights as they are then. Knows models, not engines.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from seqproc._util.printing import Facts, Printed, Words
from seqproc.errors import EngineError, ModelError, SeqprocError
from seqproc.models.tokenization import Tokenizer
from seqproc.models.wrappers import unwrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights on disk, for an engine that loads them itself."""

    path: str  # directory or hub id
    dtype: str  # to compute in: "float32", "bfloat16", "float16" or "auto"
    adapter: str | None = None  # directory or hub id of a PEFT LoRA adapter
    revision: str | None = None  # of the hub id
    trust_remote_code: bool = False
    notes: tuple[str, ...] = ()  # how it differs from the source, in sentences


class ModelSource(Printed):
    """A model, its tokenizer and its token ids, for any engine.

    Made by `from_model` or `from_pretrained`. A context manager; `close` drops any export.

    Args:
        name: what the user calls the model.
        tokenizer: the model's tokenizer.
        eos_token_ids: every id that ends a response.
        max_context: longest sequence of prompt and response [tokens]; None when unknown.
        vocab_size: V.
        model: a live model; or else
        path: a checkpoint that transformers can load, with
        loader: a function that loads it as a live model.
        dtype: of the weights, as a name ("float32").
        adapter: PEFT adapter of ``path``.
        revision: of ``path``, on the hub.
        trust_remote_code: run code that comes with ``path``.
    """

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Tokenizer,
        eos_token_ids: tuple[int, ...],
        max_context: int | None,
        vocab_size: int,
        model: nn.Module | None = None,
        path: str | None = None,
        loader: Callable[[], nn.Module] | None = None,
        dtype: str = "float32",
        adapter: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if (model is None) == (path is None):
            raise ModelError("a ModelSource is made of either a live model or a path")
        self.name = name
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.max_context = max_context
        self.vocab_size = vocab_size
        self.dtype = dtype
        self._model = model
        self._path = path
        self._loader = loader
        self._adapter = adapter
        self._revision = revision
        self._trust_remote_code = trust_remote_code
        self._checkpoint: Checkpoint | None = None
        self._remove_export: Callable[[], object] | None = None

    def _facts(self) -> Facts:
        return {
            "name": self.name,
            "dtype": Words(self.dtype),
            "is_live": self.is_live,
            "adapter": self._adapter,
            "vocab_size": self.vocab_size,
            "max_context": self.max_context,
        }

    @classmethod
    def from_model(
        cls, model: nn.Module, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...] | None = None
    ) -> ModelSource:
        """A live model (data-parallel and compiled wrappers are taken off).

        Args:
            model: a transformers causal language model, or PEFT's wrapper of one.
            tokenizer: the model's tokenizer.
            eos_token_ids: default: all that the model and the tokenizer name.

        Raises:
            ModelError: when no EOS id or no vocabulary size can be found.
        """
        from seqproc import models

        model = unwrap(model)
        config = getattr(model, "config", None)
        return cls(
            name=str(getattr(config, "_name_or_path", "") or type(model).__name__),
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids or models.eos_token_ids(model, None, tokenizer),
            max_context=models.context_length(config),
            vocab_size=models.vocab_size(model),
            model=model,
            dtype=_dtype_of(model),
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        device: str | None = None,
        adapter: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> ModelSource:
        """A checkpoint by name, directory or hub id. Reads its configuration, not its weights.

        Args:
            name_or_path: as for `seqproc.load_model`.
            dtype: to compute in.
            device: of the live model; None chooses an accelerator when there is one.
            adapter: directory or hub id of a PEFT adapter.
            revision: branch, tag or commit on the hub.
            trust_remote_code: run code that comes with the checkpoint.

        Raises:
            ConfigError: when there is no such dtype or device.
            ModelError: when it cannot be found or read, or does not fit its tokenizer.
        """
        from seqproc import models

        models.resolve_dtype(dtype)  # refused now, and not when something is first scored
        models.resolve_device(device)
        path = models.resolve_model(name_or_path)
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        config, generation_config, tokenizer = _read_configuration(path, hub)
        vocab_size = int(config.get_text_config().vocab_size)
        models.check_tokenizer(tokenizer, vocab_size)

        def load() -> nn.Module:
            return models.load_model(
                path,
                dtype=dtype,
                device=device,
                adapter=adapter,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )[0]

        return cls(
            name=str(name_or_path),
            tokenizer=tokenizer,
            eos_token_ids=models.eos_token_ids(config, generation_config, tokenizer),
            max_context=models.context_length(config),
            vocab_size=vocab_size,
            path=path,
            loader=load,
            dtype=dtype,
            adapter=adapter,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )

    @property
    def is_live(self) -> bool:
        """Whether it was made of a live model, and not of a checkpoint."""
        return self._path is None

    @property
    def is_loaded(self) -> bool:
        """Whether the live model is in memory."""
        return self._model is not None

    def live_model(self) -> nn.Module:
        """The model in memory; loaded when first asked for, and kept."""
        if self._model is None:
            if self._loader is None:
                raise ModelError(
                    f"nothing can load {self.name!r} into memory: give the source a loader"
                )
            self._model = self._loader()
        return self._model

    def checkpoint(self) -> Checkpoint:
        """The weights on disk, for an engine that loads them itself.

        A live model is exported when first asked for: a snapshot, which later training does not
        change. It is removed by `close`, or with the source.

        Raises:
            EngineError: when the live model cannot be written as weights that an engine can load.
        """
        if self._checkpoint is None:
            self._checkpoint = self._from_path() if self._path is not None else self._export()
        return self._checkpoint

    def close(self) -> None:
        """Remove the export, if there is one; may be called twice. The live model stays."""
        if self._remove_export is not None:
            self._remove_export()
            self._remove_export = self._checkpoint = None

    def __enter__(self) -> ModelSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _from_path(self) -> Checkpoint:
        assert self._path is not None
        dtype, notes = _engine_dtype(self.dtype)
        return Checkpoint(
            path=self._path,
            dtype=dtype,
            adapter=self._adapter,
            revision=self._revision,
            trust_remote_code=self._trust_remote_code,
            notes=notes,
        )

    def _export(self) -> Checkpoint:
        from seqproc.models.export import export_model

        directory = tempfile.mkdtemp(prefix="seqproc-weights-")
        remove = weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        dtype, notes = _engine_dtype(self.dtype)
        try:
            adapter = export_model(self.live_model(), directory, dtype)
            self.tokenizer.save_pretrained(directory)
        except SeqprocError:
            remove()
            raise
        except Exception as error:
            remove()
            raise EngineError(
                f"cannot write the weights of {self.name!r} for an engine that loads them from "
                f"disk ({type(error).__name__}: {error}); save the model yourself and give its "
                "path, or sample with engine='hf'"
            ) from error
        self._remove_export = remove
        return Checkpoint(path=directory, dtype=dtype, adapter=adapter, notes=notes)


def _read_configuration(path: str, hub: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Configuration, generation configuration (None when there is none) and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path, **hub)
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read the configuration and tokenizer of {path!r}: {error}"
        ) from error
    try:
        generation_config = GenerationConfig.from_pretrained(path, revision=hub["revision"])
    except OSError:  # a checkpoint need not have one
        generation_config = None
    return config, generation_config, tokenizer


def _dtype_of(model: nn.Module) -> str:
    # A PEFT adapter may be in float32 on a bfloat16 model, but comes after its weights.
    dtype = next(model.parameters()).dtype
    return str(dtype).removeprefix("torch.")


def _engine_dtype(dtype: str) -> tuple[str, tuple[str, ...]]:
    """The dtype that engines of their own have, and a note when it is another one."""
    if dtype != "float64":
        return dtype, ()
    return "float32", ("the model is float64; engines that load weights from disk have float32",)
