"""Models and tokenizers by name: resolve, load, and check that the two fit together.

A name is an embedded model (``"smollm2-135m"``), a local folder or a Hugging Face hub id. Knows
nothing about engines, scorers or prompts; imports transformers and peft only when it loads.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch

from seqproc._util.optional import require_package
from seqproc.config import DTypeName, dtype_name
from seqproc.errors import ConfigError, ModelError, SeqprocError, did_you_mean
from seqproc.models.embedded import (
    EMBEDDED_MODELS,
    ensure_converted,
)
from seqproc.models.introspection import (
    first_line,
    require_logits,
    vocab_size,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

DTYPES = (*get_args(DTypeName), "auto")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def resolve_model(name_or_path: StrPath) -> str:
    """The path or hub id of a model, in a form that transformers and vLLM both load.

    An embedded name becomes its folder in the user's cache (converted on first use); a local
    folder or a hub id comes back unchanged, but for a leading ``~``.

    Raises:
        ModelError: a path that does not exist or holds no model, or not a possible hub id.
        MissingDependencyError: the package of an embedded model is not installed.
    """
    if isinstance(name_or_path, (str, os.PathLike)) and name_or_path in EMBEDDED_MODELS:
        return str(ensure_converted(os.fspath(name_or_path)))
    return _local_or_hub(name_or_path, kind="model", required="config.json")


def load_model(
    name_or_path: StrPath,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    adapter: StrPath | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready to score: in eval mode, checked.

    Args:
        name_or_path: an embedded name (`EMBEDDED_MODELS`), a local folder, or a hub id.
        dtype: "float32", "float64", "bfloat16", "float16", or "auto" for the checkpoint's own.
        device: default "cuda" when there is one, else "cpu".
        adapter: folder or hub id of a PEFT adapter; the model comes back as a `PeftModel`.
        trust_remote_code: run Python code that the checkpoint brings along.
        revision: branch, tag or commit of a hub model.

    Raises:
        ConfigError: an unknown dtype, a device that is not there, a revision of a local folder.
        ModelError: something cannot be loaded, is incomplete, or does not fit the rest.
        MissingDependencyError: the package of an embedded model, or peft, is not installed.
    """
    torch_dtype, target = resolve_dtype(dtype), resolve_device(device)
    source = resolve_model(name_or_path)
    if adapter is not None:
        require_package("peft", extra="peft", purpose="a model with an adapter")
        adapter = _local_or_hub(adapter, kind="adapter", required="adapter_config.json")
    if revision is not None and os.path.isdir(source):
        raise ConfigError(f"revision is {revision!r}, but {source!r} is a folder; leave it out")
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    with _explained("tokenizer", source):
        tokenizer = _load_tokenizer(source, options)
    with _explained("model", source):
        model: Any = _load_weights(source, torch_dtype, options)
    if adapter is not None:
        with _explained("adapter", adapter):
            model = _load_adapter(model, adapter)
    check_tokenizer(tokenizer, vocab_size(model))
    with _explained("model", source):
        return model.to(target).eval(), tokenizer


def check_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    """Raise ModelError unless `model` gives logits, and `tokenizer` fits: see `check_tokenizer`."""
    if not isinstance(model, torch.nn.Module):
        hint = "; a name or path is opened by SequenceProcessor.from_pretrained or load_model"
        raise ModelError(
            f"model must be a causal language model in torch, got {type(model).__name__}"
            f"{hint if isinstance(model, (str, os.PathLike)) else ''}"
        )
    check_tokenizer(tokenizer, vocab_size(model))
    require_logits(model, len(tokenizer))


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Raise ModelError unless the tokenizer has an EOS and its ids fit the model's vocabulary.

    A tokenizer without a pad token gets its EOS as pad token. A model with more rows than the
    tokenizer has tokens is usual: checkpoints pad their vocabulary.
    """
    needed = ("__len__", "decode", "eos_token_id", "pad_token_id")
    missing = [name for name in needed if not hasattr(tokenizer, name)]
    if missing:
        raise ModelError(
            f"tokenizer must be the model's tokenizer, as from AutoTokenizer.from_pretrained, got "
            f"{type(tokenizer).__name__}, which has no {', '.join(missing)}"
        )
    if len(tokenizer) > vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens but the model's vocabulary only "
            f"{vocab_size}; load both from the same checkpoint, or resize the model's embeddings"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no EOS token, so no response could end; "
            "set tokenizer.eos_token to the token that ends a response"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("the tokenizer has no pad token; padding with EOS %r", tokenizer.eos_token)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """The dtype of a name; "auto" stays as it is. ConfigError for any other."""
    name = str(dtype_name(dtype))
    if name not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    return name if name == "auto" else getattr(torch, name)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device of a name; for None an accelerator when there is one. ConfigError when absent."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"device is {device!r}; expected {_devices()}") from error
    if not _is_here(resolved):
        raise ConfigError(f"device is {device!r}, and torch sees none here; expected {_devices()}")
    return resolved


def _is_here(device: torch.device) -> bool:
    """Whether torch sees a device. Starts nothing on it: an engine may still fork."""
    if device.type == "cpu":
        return True
    if device.type == "mps":
        return torch.backends.mps.is_available()
    back_end: Any = getattr(torch, device.type, None)
    if not hasattr(back_end, "is_available"):  # meta, for one
        return False
    return bool(back_end.is_available()) and (device.index or 0) < back_end.device_count()


def _devices() -> str:
    """Those that torch sees, in words."""
    cuda = [f"'cuda:{n}'" for n in range(torch.cuda.device_count())]
    mps = ["'mps'"] if torch.backends.mps.is_available() else []
    return " or ".join(["'cpu'", *cuda, *mps])


def _local_or_hub(name_or_path: StrPath, *, kind: str, required: str) -> str:
    """A local folder that holds the file `required`, or a possible hub id."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise ModelError(f"{kind} must be a name or a path, got {type(name_or_path).__name__}")
    path = os.path.expanduser(name_or_path)
    if os.path.isfile(os.path.join(path, required)):
        return path
    if os.path.isdir(path):
        raise ModelError(f"the folder {path!r} has no {required}, so it holds no {kind}")
    if os.path.exists(path):
        raise ModelError(f"{path!r} is a file; give the folder of the {kind}, with {required}")
    if isinstance(name_or_path, os.PathLike) or not _HUB_ID.fullmatch(path):
        raise ModelError(
            f"there is no folder {path!r}, and it is not a hub id ('owner/name') either; "
            f"embedded models: {', '.join(EMBEDDED_MODELS)}"
        )
    hint = did_you_mean(path.lower(), EMBEDDED_MODELS, cutoff=0.8)
    if hint and "/" not in path:
        raise ModelError(
            f"there is no folder {path!r}, and it is no embedded model{hint} "
            "A model of the hub with such a name: give its owner, too ('owner/name')"
        )
    return path


def _load_tokenizer(source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, **options)


def _load_weights(
    source: str, dtype: torch.dtype | str, options: dict[str, Any]
) -> PreTrainedModel:
    """Load a model whose every weight comes from the checkpoint."""
    from transformers import AutoModelForCausalLM

    # transformers would draw missing and mismatched weights at random; here they are errors.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    model, report = loaded
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    _require_none("the checkpoint lacks", report["missing_keys"])
    _require_none("the checkpoint has another shape than its config.json for", mismatched)
    return model


def _load_adapter(model: PreTrainedModel, adapter: str) -> Any:
    """Put a PEFT adapter on `model`, in the model's dtype, every weight of it used."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # raised below
        options: dict[str, Any] = {"is_trainable": False, "autocast_adapter_dtype": False}
        adapted = PeftModel.from_pretrained(model, adapter, **options)
        # Once more into the same adapter, for the report that from_pretrained keeps to itself.
        report = adapted.load_adapter(adapter, "default", **options)
    _require_none("the adapter lacks", report.missing_keys)
    _require_none("the model has no place for", report.unexpected_keys)
    return adapted


def _require_none(problem: str, names: Iterable[str]) -> None:
    found = sorted(names)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ModelError(f"{problem} {', '.join(found[:3])}{more}")


@contextmanager
def _explained(what: str, source: str) -> Iterator[None]:
    """Turn whatever a loading library raises into one `ModelError` that says what to do."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, SeqprocError) else first_line(error)
        raise ModelError(
            f"cannot load the {what} {source!r}: {reason}; {_fix(source, error)}"
        ) from error


def _fix(source: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "pass trust_remote_code=True if you trust the code that it brings"
    if "out of memory" in str(error):
        return "choose a smaller dtype or another device"
    if os.path.isdir(source):
        return "check that the folder is complete and that all of it belongs to one model"
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    offline = "unset HF_HUB_OFFLINE, " if is_offline else ""
    return (
        f"{offline}check the id, the network and, for a gated repository, `hf auth login`, "
        "or give a local folder"
    )
