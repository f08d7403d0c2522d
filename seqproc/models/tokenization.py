"""Prompts to token ids, once, outside the engines; refusing what no engine could run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Protocol

from seqproc.errors import PromptError
from seqproc.prompts.entry import refuse_surrogates

_SHOWN = 60  # characters of a prompt quoted in an error


class Tokenizer(Protocol):
    """What is asked of a tokenizer: transformers' `PreTrainedTokenizerBase` has all of it."""

    def __len__(self) -> int:
        """Number of tokens, added ones too."""
        ...

    def __getattr__(self, name: str, /) -> Any:
        """Special tokens: ``eos_token_id``, ``pad_token_id``, None where there is none."""
        ...

    def __call__(self, text: str, /, *, add_special_tokens: bool = True) -> Mapping[str, Any]:
        """Token ids of a text, as ``"input_ids"``."""
        ...

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, alone."""
        ...

    def decode(
        self,
        token_ids: list[int],
        /,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> Any:
        """The text of token ids, a string."""
        ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        /,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
    ) -> Any:
        """Messages as one text, where ``chat_template`` is set."""
        ...

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write what `AutoTokenizer.from_pretrained` reads."""
        ...


def special_token_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of all special tokens: those with a role, and those added to the vocabulary as special.

    A chat template's tokens may be of the second kind alone. Empty for a tokenizer that tells none.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token_id for token_id, token in added.items() if token.special}
    return special | set(getattr(tokenizer, "all_special_ids", ()))


def ids_that_write(characters: str, tokenizer: Tokenizer, vocabulary: int) -> list[int]:
    """Ids whose own text has one of some characters in it.

    Args:
        characters: any of them.
        tokenizer: decodes each id alone.
        vocabulary: V; ids from 0 up to it are looked at.
    """
    wanted = set(characters)
    return [i for i in range(vocabulary) if wanted & set(tokenizer.decode([i]))] if wanted else []


def as_prompts(prompts: object) -> list[Any]:
    """The prompts of a list, or of anything else that gives them in an order of its own.

    Raises:
        PromptError: one string, which would be a prompt for each of its letters, or no iterable.
    """
    if isinstance(prompts, (str, bytes)):
        raise PromptError(
            f"prompts must be a list of strings, got one: put it in a list, [{prompts!r:.60}]"
        )
    no_order = isinstance(prompts, (Mapping, Set)) or getattr(prompts, "ndim", 1) == 0
    if no_order or not isinstance(prompts, Iterable):
        raise PromptError(f"prompts must be a list of strings, got {type(prompts).__name__}")
    return list(prompts)


def encode_prompts(tokenizer: Tokenizer, prompts: Iterable[str]) -> list[tuple[int, ...]]:
    """Tokenise prompts, each to at least one token.

    The tokenizer's special tokens are added, unless the text already begins with its BOS token,
    as the text of a chat template does.

    Raises:
        PromptError: no prompts, a prompt that is not a string, one without tokens, or one with half
            of a surrogate pair.
    """
    listed = as_prompts(prompts)
    if not listed:
        raise PromptError("prompts is empty: give at least one prompt")
    return [_encode(tokenizer, i, prompt) for i, prompt in enumerate(listed)]


def _encode(tokenizer: Tokenizer, index: int, prompt: object) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        raise PromptError(f"prompt {index} must be a string, got {type(prompt).__name__}")
    refuse_surrogates(f"prompt {index}", prompt)
    bos = getattr(tokenizer, "bos_token", None)
    bare = bool(bos and prompt.startswith(bos))
    ids = tokenizer(prompt, add_special_tokens=not bare)["input_ids"]
    if not prompt or not ids:
        raise PromptError(f"prompt {index} is empty: the model needs at least one token to read")
    return tuple(ids)


def check_context(
    prompt_ids: Sequence[Sequence[int]],
    prompts: Sequence[str],
    max_new_tokens: int,
    max_context: int | None,
) -> None:
    """Refuse, before anything runs, prompts that leave no room for a whole response.

    Raises:
        PromptError: naming the first such prompt, its length and the model's context.
    """
    if max_context is None:
        return
    too_long = [i for i, ids in enumerate(prompt_ids) if len(ids) + max_new_tokens > max_context]
    if too_long:
        first = too_long[0]
        raise PromptError(
            f"{len(too_long)} of {len(prompt_ids)} prompts do not fit: prompt {first} "
            f"({prompts[first][:_SHOWN]!r}) has {len(prompt_ids[first])} tokens, which with "
            f"max_new_tokens={max_new_tokens} exceeds the context of {max_context} tokens. "
            "Shorten the prompt or lower max_new_tokens"
        )


def as_chat(tokenizer: Tokenizer, text: str) -> str:
    """Wrap a text as the user's turn of the tokenizer's chat template, ready for the answer.

    Raises:
        PromptError: when the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError("this tokenizer has no chat template: leave chat formatting off")
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
