"""Models and tokenizers: found by name, loaded, checked, exported, and given other weights.

`loading` opens a model by name or path and `embedded` holds those that install from a package
index. `source` is what engines and the scorer get a model from; `export` writes a live one as a
checkpoint, `weights` reads other weights for it and `fingerprint` tells weights apart.
`introspection` asks a model what it is, `wrappers` takes off what is around it, `tokenization`
turns prompts into ids. Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

if TYPE_CHECKING:
    from seqproc.models.embedded import (
        EMBEDDED_MODELS,
        EmbeddedModel,
        ModelRecord,
        embedded_model_dir,
        list_models,
    )
    from seqproc.models.introspection import (
        context_length,
        eos_token_ids,
        has_position_table,
        vocab_size,
    )
    from seqproc.models.loading import (
        check_model_and_tokenizer,
        check_tokenizer,
        load_model,
        resolve_device,
        resolve_dtype,
        resolve_model,
    )
    from seqproc.models.source import Checkpoint, ModelSource

__all__ = [
    "EMBEDDED_MODELS",
    "Checkpoint",
    "EmbeddedModel",
    "ModelRecord",
    "ModelSource",
    "check_model_and_tokenizer",
    "check_tokenizer",
    "context_length",
    "embedded_model_dir",
    "eos_token_ids",
    "has_position_table",
    "list_models",
    "load_model",
    "resolve_device",
    "resolve_dtype",
    "resolve_model",
    "vocab_size",
]

_HOMES = {
    "Checkpoint": ".source",
    "EMBEDDED_MODELS": ".embedded",
    "EmbeddedModel": ".embedded",
    "ModelRecord": ".embedded",
    "ModelSource": ".source",
    "check_model_and_tokenizer": ".loading",
    "check_tokenizer": ".loading",
    "context_length": ".introspection",
    "embedded_model_dir": ".embedded",
    "eos_token_ids": ".introspection",
    "has_position_table": ".introspection",
    "list_models": ".embedded",
    "load_model": ".loading",
    "resolve_device": ".loading",
    "resolve_dtype": ".loading",
    "resolve_model": ".loading",
    "vocab_size": ".introspection",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
