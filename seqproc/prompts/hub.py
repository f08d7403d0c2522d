"""Rows of a dataset on the Hugging Face hub (or in a local folder that `datasets` reads).

The only module that imports `datasets`, and only when rows are asked for. Datasets that need
code of their own to be loaded are not supported: nothing downloaded is ever executed.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from seqproc._util.optional import require_package
from seqproc.errors import DatasetError

LoadDataset = Callable[..., Any]
"""The part of `datasets.load_dataset` that is used: `(path, config, *, split)`."""


def read_hub_rows(
    name: str, config: str | None, split: str, *, load: LoadDataset | None = None
) -> Iterable[dict[str, Any]]:
    """The rows of one split.

    Args:
        name: repository id such as `"openai/gsm8k"`, or a local folder of CSV, Parquet or JSON
            files whose names tell the split.
        config: the dataset's configuration, where it has several.
        split: which part.
        load: stands in for `datasets.load_dataset`.

    Raises:
        DatasetError: the dataset, configuration or split cannot be loaded, or `name` is a file.
        MissingDependencyError: `datasets` is not installed.
    """
    _refuse_file(name)
    load = load or _load_dataset()
    shown = name if config is None else f"{name}@{config}"
    try:
        rows: Iterable[dict[str, Any]] = load(name, config, split=split)
    except Exception as error:  # `datasets` lets through whatever its back-ends raise
        raise DatasetError(
            f"cannot load split {split!r} of the hub dataset {shown!r}: "
            f"{type(error).__name__}: {str(error).rstrip('.')}"
        ) from error
    return rows


def _refuse_file(name: str) -> None:
    path = Path(name)
    if path.is_file():
        folder = f"name the folder that holds it: 'hf:{path.parent}', with a file for each split"
        lines = f"'jsonl:{name}' reads it" if path.suffix == ".jsonl" else folder
        raise DatasetError(f"{name!r} is a local file, not a dataset of the hub; {lines}")


def _load_dataset() -> LoadDataset:
    require_package("datasets", extra="hub", purpose="reading from the Hugging Face hub")
    from datasets import load_dataset

    loader: LoadDataset = load_dataset
    return loader
