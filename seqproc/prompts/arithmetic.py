"""`arithmetic`: short problems with one exact integer answer, made on the spot.

For trying things out and for tests: nothing is downloaded, and the same problems come back
on every machine. Each split has its own `Generator(PCG64(seed))`, with the seeds below; all
questions differ from each other, within a split and between the two.
"""

import operator
from dataclasses import dataclass

import numpy as np

from seqproc.prompts.entry import PromptEntry
from seqproc.prompts.registry import register_dataset
from seqproc.prompts.templates import r1_prompt

SPLIT_SEEDS = {"test": 1_000_003, "train": 1_000_033}
SPLIT_SIZES = {"test": 512, "train": 4096}

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_LARGEST_OPERAND = {"+": 99, "-": 99, "*": 12}
_NAMES = ("Ada", "Bruno", "Chiara", "Dmitri", "Emma", "Farid", "Goro", "Hana")
_THINGS = ("apples", "books", "coins", "marbles", "pencils", "shells", "stamps", "tickets")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """A way to word a problem; its operands are `a` and `b`, with a ≥ b."""

    operation: str
    wording: str


_FORMS = (
    _Form(operation="+", wording="What is {a} + {b}?"),
    _Form(operation="-", wording="What is {a} - {b}?"),
    _Form(operation="*", wording="What is {a} * {b}?"),
    _Form(
        operation="+",
        wording="{name} has {a} {things} and finds {b} more. "
        "How many {things} does {name} have now?",
    ),
    _Form(
        operation="-",
        wording="{name} has {a} {things} and gives away {b} of them. "
        "How many {things} does {name} have left?",
    ),
    _Form(
        operation="*",
        wording="{name} fills {a} boxes with {b} {things} each. "
        "How many {things} are in the boxes altogether?",
    ),
)


@register_dataset(
    "arithmetic",
    description="Generated +, - and * problems with integer answers, R1 template; no download.",
    splits=("train", "test"),
)
def load_arithmetic(split: str) -> list[PromptEntry]:
    """The problems of a split: 4096 in `train`, 512 in `test`, no question in both."""
    test = _draw_split("test", taken=set())
    if split == "test":
        return test
    return _draw_split("train", taken={entry.question for entry in test})


def _draw_split(split: str, taken: set[str]) -> list[PromptEntry]:
    """Draw problems until there are enough that are not `taken` yet."""
    rng = np.random.Generator(np.random.PCG64(SPLIT_SEEDS[split]))
    entries: list[PromptEntry] = []
    while len(entries) < SPLIT_SIZES[split]:
        entry = _draw_problem(rng)
        if entry.question not in taken:
            taken.add(entry.question)
            entries.append(entry)
    return entries


def _draw_problem(rng: np.random.Generator) -> PromptEntry:
    form = _FORMS[rng.integers(len(_FORMS))]
    b, a = sorted(rng.integers(2, _LARGEST_OPERAND[form.operation], size=2, endpoint=True).tolist())
    question = form.wording.format(
        a=a,
        b=b,
        name=_NAMES[rng.integers(len(_NAMES))],
        things=_THINGS[rng.integers(len(_THINGS))],
    )
    return PromptEntry(
        text=r1_prompt(question),
        question=question,
        answer=str(_OPERATIONS[form.operation](a, b)),
        meta={"operation": form.operation},
    )
