"""`jsonl:PATH` and `hf:NAME`: prompts that users bring, in a file or from the hub.

Finds the columns and turns rows into entries; applies no template, so a prompt reaches the
model just as it stands in the file.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seqproc.errors import DatasetError, PromptError
from seqproc.prompts.entry import PromptEntry
from seqproc.prompts.hub import LoadDataset, read_hub_rows
from seqproc.prompts.jsonlines import read_json_lines
from seqproc.prompts.registry import register_dataset

TEXT_KEYS = ("prompt", "text", "question")
"""Where the prompt is looked for, in this order."""
ANSWER_KEYS = ("answer", "solution")
"""Where a hub dataset's gold answer is looked for, in this order."""

_ONE_FILE_SPLITS = ("train", "all")


@register_dataset(
    "jsonl",
    description="Your own prompts: jsonl:PATH, a file of JSON objects with prompt (or text, or "
    "question), answer and meta, or a folder of SPLIT.jsonl.",
    splits=(),
)
def load_jsonl(
    split: str, *, argument: str | None = None, data_dir: str | None = None
) -> list[PromptEntry]:
    """Read a file of one JSON object a line, or `<split>.jsonl` in a folder of such files.

    An object has the prompt under `prompt`, `text` or `question` (the first that is there),
    and optionally `answer` (a string or a number) and `meta` (an object). Its other keys are
    kept in the entry's `meta`.

    Raises:
        DatasetError: no file is named, it or the split does not exist, it holds no prompts,
            or a line is malformed; the message names the line.
    """
    path = _split_file(_only_path(argument, data_dir), split)
    entries = [_file_entry(row, f"{path}, line {number}") for number, row in read_json_lines(path)]
    if not entries:
        raise DatasetError(f"{path} holds no prompts: it is empty, or all of its lines are blank")
    return entries


@register_dataset(
    "hf",
    description="Any hub dataset with a column prompt, text or question: hf:NAME or "
    "hf:NAME@CONFIG; hf:FOLDER for local CSV or Parquet files.",
    splits=(),
)
def load_hub(
    split: str, *, argument: str | None = None, load: LoadDataset | None = None
) -> list[PromptEntry]:
    """Read a dataset of the Hugging Face hub, or a local folder of CSV, Parquet or JSON files.

    The prompt is the column `prompt`, `text` or `question`; the gold answer, where there is
    one, `answer` or `solution`, as it stands.

    Args:
        split: which part.
        argument: `NAME`, `NAME@CONFIG` or `FOLDER`.
        load: stands in for `datasets.load_dataset`.

    Raises:
        DatasetError: the dataset cannot be loaded, has no fitting column, or a row is malformed.
    """
    name, at, config = (argument or "").partition("@")
    if not name or (at and not config):
        raise DatasetError(
            f"expected 'hf:NAME' or 'hf:NAME@CONFIG', such as 'hf:openai/gsm8k@main', "
            f"got 'hf:{argument or ''}'"
        )
    rows = read_hub_rows(name, config or None, split, load=load)
    where = f"hub dataset {argument!r}, {split}"
    return [_hub_entry(row, f"{where} row {number}") for number, row in enumerate(rows)]


def _only_path(argument: str | None, data_dir: str | None) -> Path:
    if argument and data_dir:
        raise DatasetError(
            f"the prompts are named twice: {argument!r} in the spec and data_dir={data_dir!r}. "
            "Give one"
        )
    named = argument or data_dir
    if not named:
        raise DatasetError("name the file of prompts: 'jsonl:PATH'")
    return Path(named).expanduser()


def _split_file(path: Path, split: str) -> Path:
    if path.is_dir():
        return _file_of_folder(path, split)
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}")
    if split not in _ONE_FILE_SPLITS:
        raise DatasetError(
            f"the one file {path} has no split {split!r}; ask for 'train' or 'all' to read all of "
            "it, or name a folder with a file SPLIT.jsonl for each split"
        )
    return path


def _file_of_folder(folder: Path, split: str) -> Path:
    available = sorted(file.stem for file in folder.glob("*.jsonl"))
    if split not in available:
        listing = ", ".join(map(repr, available)) or "no .jsonl files"
        raise DatasetError(f"{folder} has no split {split!r}; it has {listing}")
    return folder / f"{split}.jsonl"


def _file_entry(row: dict[str, Any], where: str) -> PromptEntry:
    key = _first_key(row, TEXT_KEYS)
    if key is None:
        raise DatasetError(_no_prompt(row, where))
    extra = row.get("meta", {})
    if not isinstance(extra, dict):
        raise DatasetError(f"{where}: 'meta' must be an object, got {type(extra).__name__}")
    used = {key, "question", "answer", "meta"}
    others = {name: value for name, value in row.items() if name not in used}
    return _entry(row, key, "answer", {**others, **extra}, where)


def _hub_entry(row: Mapping[str, Any], where: str) -> PromptEntry:
    key = _first_key(row, TEXT_KEYS)
    if key is None:
        raise DatasetError(_no_prompt(row, where))
    return _entry(row, key, _first_key(row, ANSWER_KEYS), {}, where)


def _no_prompt(row: Mapping[str, Any], where: str) -> str:
    return (
        f"{where}: expected the prompt under one of {', '.join(map(repr, TEXT_KEYS))}, "
        f"got {', '.join(map(repr, row)) or 'no keys'}. Rename the one that holds it"
    )


def _entry(
    row: Mapping[str, Any],
    text_key: str,
    answer_key: str | None,
    meta: dict[str, Any],
    where: str,
) -> PromptEntry:
    text = row[text_key]
    if not isinstance(text, str):
        raise DatasetError(
            f"{where}: {text_key!r} must be a string, got {type(text).__name__}. "
            "A chat has to be turned into text with the model's chat template first"
        )
    answer = None if answer_key is None else _answer_text(row.get(answer_key), answer_key, where)
    try:
        return PromptEntry(text=text, question=row.get("question", text), answer=answer, meta=meta)
    except PromptError as error:
        raise DatasetError(f"{where}: {error}") from error


def _answer_text(answer: object, key: str, where: str) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    raise DatasetError(
        f"{where}: {key!r} must be a string, a number or null, got {type(answer).__name__}"
    )


def _first_key(row: Iterable[str], keys: tuple[str, ...]) -> str | None:
    present = set(row)
    return next((key for key in keys if key in present), None)
