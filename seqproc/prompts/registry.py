"""Datasets by name: `register_dataset` adds one, `load_prompts` reads one.

Knows names, splits and arguments; not where any dataset's prompts come from, which is
its loader's business.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, TypeVar, overload

from seqproc.errors import DatasetError, SeqprocError, did_you_mean
from seqproc.prompts.entry import PromptEntry

DatasetLoader = Callable[..., Sequence[PromptEntry]]
"""`loader(split, **options)`; the options that exist are `argument` and `data_dir`, both strings.

A loader is handed an option only when the user gave it, and only declares those it can use.
"""

LoaderT = TypeVar("LoaderT", bound=DatasetLoader)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What a list of datasets shows about one of them."""

    name: str
    """The name that `load_prompts` knows it by."""
    description: str
    """One line for people."""
    splits: tuple[str, ...]
    """Its splits; empty where they depend on the file or repository that is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dataset:
    info: DatasetInfo
    loader: DatasetLoader


_DATASETS: dict[str, _Dataset] = {}


@overload
def register_dataset(
    name: str,
    loader: LoaderT,
    *,
    description: str,
    splits: Sequence[str],
    replace: bool = False,
) -> LoaderT: ...


@overload
def register_dataset(
    name: str,
    loader: None = None,
    *,
    description: str,
    splits: Sequence[str],
    replace: bool = False,
) -> Callable[[LoaderT], LoaderT]: ...


def register_dataset(
    name: str,
    loader: DatasetLoader | None = None,
    *,
    description: str,
    splits: Sequence[str],
    replace: bool = False,
) -> DatasetLoader | Callable[[LoaderT], LoaderT]:
    """Add a dataset, by a call or as a decorator of its loader; give the loader back.

    Args:
        name: letters, digits, `_`, `.` and `-`.
        loader: `loader(split, **options) -> Sequence[PromptEntry]`. It may take `argument`
            (what follows the name in `"name:ARGUMENT"`) and `data_dir`, both strings, each
            passed only when the user gave it.
        description: one line for `describe_datasets`.
        splits: the split names that exist; empty if the loader checks the split itself.
        replace: whether a dataset of this name may be overwritten.

    Raises:
        DatasetError: the name is malformed or taken, or `splits` is one string.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DatasetError(f"a dataset's name is letters, digits, '_', '.' and '-', got {name!r}")
    if isinstance(splits, str):
        raise DatasetError(f"splits must be a sequence of names, got the string {splits!r}")
    info = DatasetInfo(name=name, description=description, splits=tuple(splits))

    def add(function: Any) -> Any:
        if name in _DATASETS and not replace:
            raise DatasetError(
                f"a dataset named {name!r} is registered already. "
                "Choose another name, or pass replace=True to overwrite it"
            )
        _DATASETS[name] = _Dataset(info=info, loader=function)
        return function

    return add if loader is None else add(loader)


def dataset_names() -> list[str]:
    """The names of all registered datasets, sorted."""
    return sorted(_DATASETS)


def describe_datasets() -> list[DatasetInfo]:
    """Name, description and splits of every registered dataset, sorted by name."""
    return [_DATASETS[name].info for name in dataset_names()]


def load_prompts(
    spec: str, split: str = "train", *, data_dir: str | PathLike[str] | None = None
) -> list[PromptEntry]:
    """Read a dataset's prompts, in the dataset's own order.

    Args:
        spec: a registered name, or `"name:ARGUMENT"` for datasets that read what they are
            pointed at: `"gsm8k:DIR"`, `"jsonl:PATH"`, `"hf:NAME"`.
        split: which part of the dataset.
        data_dir: folder to read from, for datasets that can (`"gsm8k"`, `"jsonl"`).

    Raises:
        DatasetError: the name or the split is unknown, an option does not apply to this
            dataset or is missing, or what it reads is missing, malformed or empty; also whatever
            its loader raises that is no `SeqprocError`.
    """
    if not isinstance(spec, str):
        raise DatasetError(
            f"a dataset is named by a string, got {type(spec).__name__}. "
            f"Known: {_listing(dataset_names())}"
        )
    if not isinstance(split, str):
        raise DatasetError(f"a split is named by a string, got {type(split).__name__}")
    if not isinstance(data_dir, str | PathLike | None):
        raise DatasetError(f"data_dir must be a path, got {type(data_dir).__name__}")
    name, colon, argument = spec.partition(":")
    dataset = _find(name)
    known_splits = dataset.info.splits
    if known_splits and split not in known_splits:
        raise DatasetError(
            f"dataset {name!r} has no split {split!r}; it has {_listing(known_splits)}"
        )
    options: dict[str, str] = {}
    if colon:
        options["argument"] = argument
    if data_dir is not None:
        options["data_dir"] = fspath(data_dir)
    _check_options(name, dataset.loader, options)
    return _loaded(spec, split, dataset.loader, options)


def _find(name: str) -> _Dataset:
    if name in _DATASETS:
        return _DATASETS[name]
    raise DatasetError(
        f"no dataset is named {name!r}{did_you_mean(name, _DATASETS) or '.'} "
        f"Known: {_listing(dataset_names())}. "
        "A file of prompts is read with 'jsonl:PATH', a hub dataset with 'hf:NAME'"
    )


def _check_options(name: str, loader: DatasetLoader, options: dict[str, str]) -> None:
    """Refuse an option that the loader does not take, and the lack of one that it needs."""
    parameters = inspect.signature(loader).parameters
    needed = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
    if "argument" in needed - set(options):
        raise DatasetError(f"dataset {name!r} needs something after its name: '{name}:ARGUMENT'")
    if "data_dir" in needed - set(options):
        raise DatasetError(f"dataset {name!r} is read from a folder: name it by data_dir")
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    if "argument" in options and "argument" not in parameters:
        raise DatasetError(
            f"dataset {name!r} takes nothing after its name, got {options['argument']!r}. "
            f"Ask for {name!r} alone"
        )
    if "data_dir" in options and "data_dir" not in parameters:
        raise DatasetError(f"dataset {name!r} is not read from a folder; leave data_dir out")


def _loaded(
    spec: str, split: str, loader: DatasetLoader, options: dict[str, str]
) -> list[PromptEntry]:
    """The loader's entries; what it raises, also while they are read, names the dataset."""
    try:
        return _checked_entries(spec, split, loader(split, **options))
    except SeqprocError:
        raise
    except Exception as error:  # of whoever wrote the loader
        raise DatasetError(
            f"the loader of dataset {spec!r} failed at split {split!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _checked_entries(spec: str, split: str, entries: Sequence[PromptEntry]) -> list[PromptEntry]:
    if isinstance(entries, str | bytes) or not isinstance(entries, Iterable):
        raise DatasetError(
            f"the loader of dataset {spec!r} must return a list of PromptEntry objects, "
            f"got {type(entries).__name__}"
        )
    loaded = list(entries)
    if not loaded:
        raise DatasetError(f"dataset {spec!r}, split {split!r}, holds no prompts")
    strangers = {type(entry).__name__ for entry in loaded if not isinstance(entry, PromptEntry)}
    if strangers:
        raise DatasetError(
            f"the loader of dataset {spec!r} must return PromptEntry objects, "
            f"got {_listing(sorted(strangers))}"
        )
    return loaded


def _listing(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
