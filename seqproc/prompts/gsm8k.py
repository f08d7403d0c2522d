"""`gsm8k` and `gsm8k_r1_template`: the GSM8K word problems, plain or in the R1 template.

Read from a folder that the user names, or else from the hub; none of it is shipped.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from seqproc.errors import DatasetError
from seqproc.prompts.entry import PromptEntry
from seqproc.prompts.hub import read_hub_rows
from seqproc.prompts.jsonlines import read_json_lines
from seqproc.prompts.registry import register_dataset
from seqproc.prompts.templates import plain_prompt, r1_prompt

FOLDER_VARIABLE = "SEQPROC_GSM8K_DIR"
"""Environment variable that names the folder when neither the spec nor `data_dir` does."""

_HOW_TO_GIVE_A_FOLDER = (
    "To read a local copy, give a folder that holds train.jsonl and test.jsonl (objects with "
    f"'question' and 'answer'): 'gsm8k:DIR', data_dir=DIR, or {FOLDER_VARIABLE}=DIR"
)


def load_gsm8k(
    split: str,
    *,
    argument: str | None = None,
    data_dir: str | None = None,
    prompt: Callable[[str], str] = plain_prompt,
) -> list[PromptEntry]:
    """Read a split of GSM8K, each question formatted by `prompt`.

    Raises:
        DatasetError: the folder is named twice or lacks the file, a row is malformed, or the
            hub cannot be read.
    """
    folder = _folder(argument, data_dir)
    if folder is None:
        rows = [
            (f"openai/gsm8k, {split} row {number}", row)
            for number, row in enumerate(_hub_rows(split))
        ]
    else:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            raise DatasetError(f"there is no file {path}. {_HOW_TO_GIVE_A_FOLDER}")
        rows = [(f"{path}, line {number}", row) for number, row in read_json_lines(path)]
    return [_entry(row, where, prompt) for where, row in rows]


def gold_answer(solution: str) -> str | None:
    """The final answer of a worked solution: what follows `####`, without thousands commas.

    None if there is no `####`, or nothing after it.
    """
    _, mark, answer = solution.rpartition("####")
    return (answer.strip().replace(",", "") or None) if mark else None


def _folder(argument: str | None, data_dir: str | None) -> Path | None:
    if argument is not None and data_dir is not None:
        raise DatasetError(
            f"the GSM8K folder is named twice: {argument!r} in the spec and data_dir={data_dir!r}. "
            "Give one"
        )
    named = argument if argument is not None else data_dir
    if named is None:
        named = os.environ.get(FOLDER_VARIABLE) or None
    elif not named:
        raise DatasetError(f"the GSM8K folder is an empty string. {_HOW_TO_GIVE_A_FOLDER}")
    return None if named is None else Path(named).expanduser()


def _hub_rows(split: str) -> list[dict[str, Any]]:
    try:
        return list(read_hub_rows("openai/gsm8k", "main", split))
    except DatasetError as error:
        raise DatasetError(f"{error}. {_HOW_TO_GIVE_A_FOLDER}") from error


def _entry(row: dict[str, Any], where: str, prompt: Callable[[str], str]) -> PromptEntry:
    question, solution = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str):
        raise DatasetError(
            f"{where}: expected strings under 'question' and 'answer', got the keys "
            f"{', '.join(map(repr, row)) or 'none'}"
        )
    return PromptEntry(
        text=prompt(question),
        question=question,
        answer=gold_answer(solution),
        meta={"solution": solution},
    )


register_dataset(
    "gsm8k",
    load_gsm8k,
    description="GSM8K word problems as plain questions; from a folder (gsm8k:DIR) or the hub.",
    splits=("train", "test"),
)
register_dataset(
    "gsm8k_r1_template",
    partial(load_gsm8k, prompt=r1_prompt),
    description="GSM8K word problems in the R1 template; from a folder or the hub.",
    splits=("train", "test"),
)
