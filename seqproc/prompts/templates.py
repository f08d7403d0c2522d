"""Templates that turn a question into the text that a model reads.

Knows nothing of chat templates or tokenizers: these are plain strings for base models and
instruct models alike.
"""

from seqproc._util.arguments import require
from seqproc.errors import PromptError

R1_TEMPLATE = (
    "Solve the problem below. Start by reasoning step by step between the tags <think> and "
    "</think>. After that, write nothing but the final answer between the tags <answer> and "
    "</answer>.\n"
    "\n"
    "Problem: {question}\n"
    "\n"
    "Solution: <think>"
)
"""Asks for reasoning in `<think>` and a final answer in `<answer>`, and opens the first tag."""

PLAIN_TEMPLATE = "Question: {question}\nAnswer:"
"""The question, and nothing about the form of the answer."""


def r1_prompt(question: str) -> str:
    """The question in `R1_TEMPLATE`; the model's response goes on inside `<think>`."""
    return R1_TEMPLATE.format(question=_stripped(question))


def plain_prompt(question: str) -> str:
    """The question in `PLAIN_TEMPLATE`."""
    return PLAIN_TEMPLATE.format(question=_stripped(question))


def _stripped(question: str) -> str:
    require("question", question, str, "a string", PromptError)
    return question.strip()
