"""Where a response ends, on scripted tokens: byte-level BPE, SentencePiece with byte fallback."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqproc.engines.base import Request, StoppingRule
from seqproc.engines.stopping import StopWatcher, check_request, finish
from seqproc.errors import EngineError

PIECES = ["▁", "a", "b", "▁foo", "foo", "▁ba", "r>", "ar", ">x", "<st", "op", "op>tail", "</", "é"]


def sentencepiece() -> Any:
    """A Llama-like tokenizer: word starts as ▁, bytes as tokens, a leading space dropped."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<|end|>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate(special + byte_tokens + PIECES)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


@pytest.fixture(scope="module")
def pieces() -> Any:
    return sentencepiece()


def ids_of(tokenizer: Any, *tokens: str) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert None not in ids
    assert tokenizer.unk_token_id not in ids
    return ids


def as_bytes(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


def rule(
    tokenizer: Any, *stop: str, limit: int = 100, eos: tuple[int, ...] | None = None
) -> StoppingRule:
    return StoppingRule(
        max_new_tokens=limit,
        eos_token_ids=(tokenizer.eos_token_id,) if eos is None else eos,
        stop=stop,
    )


def watched_end(tokenizer: Any, ids: list[int], *stop: str) -> int | None:
    watcher = StopWatcher(tokenizer, stop)
    return next((n for n, token in enumerate(ids, 1) if watcher.push(token)), None)


# ---------------------------------------------------------------- each reason


def test_eos_ends_a_response_and_belongs_to_it(pieces: Any) -> None:
    ids = ids_of(pieces, "▁foo", "</s>", "a", "b")
    assert finish(ids, pieces, rule(pieces)) == (tuple(ids[:2]), "foo", "eos")


def test_any_of_several_eos_ids_ends_it(pieces: Any) -> None:
    eos = tuple(ids_of(pieces, "</s>", "<|end|>"))
    ids = ids_of(pieces, "a", "<|end|>", "</s>")
    assert finish(ids, pieces, rule(pieces, eos=eos)) == (tuple(ids[:2]), "a", "eos")


def test_without_eos_ids_only_stop_and_length_end_it(pieces: Any) -> None:
    ids = ids_of(pieces, "a", "</s>", "b")
    assert finish(ids, pieces, rule(pieces, limit=3, eos=())) == (tuple(ids), "ab", "length")


def test_a_stop_string_split_over_tokens(pieces: Any) -> None:
    ids = ids_of(pieces, "a", "<st", "op", ">x", "b")
    assert finish(ids, pieces, rule(pieces, "<stop>")) == (tuple(ids[:4]), "a<stop>x", "stop")


def test_text_after_the_stop_string_in_its_last_token_is_kept(pieces: Any) -> None:
    ids = ids_of(pieces, "<st", "op>tail", "b")
    assert finish(ids, pieces, rule(pieces, "<stop>"))[1:] == ("<stop>tail", "stop")


def test_a_stop_string_inside_one_token(pieces: Any) -> None:
    ids = ids_of(pieces, "a", "op>tail", "b")
    assert finish(ids, pieces, rule(pieces, ">t")) == (tuple(ids[:2]), "aop>tail", "stop")


def test_the_first_of_several_stop_strings_counts(pieces: Any) -> None:
    ids = ids_of(pieces, "a", "b", "▁foo", "▁ba", "r>")
    assert finish(ids, pieces, rule(pieces, "bar", "b f"))[0] == tuple(ids[:3])


def test_the_first_of_several_occurrences_counts(pieces: Any) -> None:
    ids = ids_of(pieces, *["a", "b"] * 20)
    assert finish(ids, pieces, rule(pieces, "ab"))[0] == tuple(ids[:2])


def test_eos_before_a_stop_string_wins_and_after_it_does_not(pieces: Any) -> None:
    early = ids_of(pieces, "</s>", "a", "b")
    assert finish(early, pieces, rule(pieces, "ab"))[2] == "eos"
    late = ids_of(pieces, "a", "b", "</s>")
    assert finish(late, pieces, rule(pieces, "ab")) == (tuple(late[:2]), "ab", "stop")


def test_a_stop_string_may_be_a_special_token_or_hold_one(pieces: Any) -> None:
    ids = ids_of(pieces, "a", "<|end|>", "b")
    assert finish(ids, pieces, rule(pieces, "<|end|>")) == (tuple(ids[:2]), "a<|end|>", "stop")
    assert finish(ids, pieces, rule(pieces, "a<|end|>b")) == (tuple(ids), "a<|end|>b", "stop")
    twice = ids_of(pieces, "<|end|>", "a", "<|end|>", "b")  # one that is no part of it is stripped
    assert finish(twice, pieces, rule(pieces, "a<|end|>")) == (tuple(twice[:3]), "a<|end|>", "stop")


def test_one_token_that_is_eos_and_stop_string_counts_as_eos(pieces: Any) -> None:
    ids = ids_of(pieces, "a", "</s>")
    assert finish(ids, pieces, rule(pieces, "</s>"))[2] == "eos"


def test_the_limit_and_a_stop_string_or_eos_at_it(pieces: Any) -> None:
    ids = ids_of(pieces, "a", "<st", "op", ">x", "b")
    assert finish(ids, pieces, rule(pieces, "<stop>", limit=4))[2] == "stop"
    assert finish(ids, pieces, rule(pieces, "<stop>", limit=3)) == (
        tuple(ids[:3]),
        "a<stop",
        "length",
    )
    ends = ids_of(pieces, "a", "b", "</s>")
    assert finish(ends, pieces, rule(pieces, limit=3))[2] == "eos"
    assert finish(ends, pieces, rule(pieces, limit=2))[2] == "length"


def test_ending_without_a_reason_is_the_engines_fault(pieces: Any) -> None:
    for ids in ([], ids_of(pieces, "a", "b")):
        with pytest.raises(EngineError, match=f"without a reason after {len(ids)} of 100"):
            finish(ids, pieces, rule(pieces, "<stop>"))


# ---------------------------------------------------------------- text and tokens


def test_a_leading_space_of_the_response_belongs_to_its_text(pieces: Any) -> None:
    # Decoded alone the space is dropped, as it is in the text that is returned.
    ids = ids_of(pieces, "▁foo")
    assert finish(ids, pieces, rule(pieces, " foo")) == (tuple(ids), "foo", "stop")
    assert watched_end(pieces, ids, " foo") == 1


def test_characters_split_over_byte_tokens(pieces: Any) -> None:
    ids = ids_of(pieces, "a", *as_bytes("数学"), "b")
    assert finish(ids, pieces, rule(pieces, "数学")) == (tuple(ids[:7]), "a数学", "stop")
    assert finish(ids[:4], pieces, rule(pieces, "数"))[2] == "stop"
    assert watched_end(pieces, ids, "数") == 4
    assert watched_end(pieces, ids, "数学") == 7


def test_a_stop_string_between_split_characters(tiny_tokenizer: Any) -> None:
    text = "数学 Ü</answer>数"
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    cut, out, reason = finish(ids, tiny_tokenizer, rule(tiny_tokenizer, "</answer>"))
    assert reason == "stop"
    assert out == "数学 Ü</answer>"
    assert watched_end(tiny_tokenizer, ids, "</answer>") == len(cut)


@pytest.mark.parametrize("tokens", [["</answer>"], ["</", "answer", ">"], list("</answer>")])
def test_however_it_tokenises(tokens: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<eos>": 0, "x": 1, **{t: i for i, t in enumerate(dict.fromkeys(tokens), 2)}}
    bpe = Tokenizer(models.WordLevel(vocab, unk_token="x"))
    bpe.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    ids = [1, 1, *(vocab[token] for token in tokens), 1]
    cut, text, reason = finish(ids, tokenizer, rule(tokenizer, "</answer>"))
    assert (text, reason) == ("xx</answer>", "stop")
    assert cut == tuple(ids[:-1])


# ---------------------------------------------------------------- the watcher against `finish`


def agrees(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> None:
    """What the watcher reports, `finish` finds, and the other way round."""
    end = watched_end(tokenizer, ids, *stop)
    whole = rule(tokenizer, *stop, limit=len(ids), eos=())
    cut, _, reason = finish(ids[:end], tokenizer, whole)
    assert reason == ("length" if end is None else "stop")
    assert len(cut) == (end or len(ids))
    if end is None:
        assert reason == "length"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_watcher_agrees_with_finish_on_byte_level_bpe(data: Any, tiny_tokenizer: Any) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tiny_tokenizer) - 1), min_size=1, max_size=80))
    hidden = data.draw(st.sampled_from(["</answer>", "学", "é 数", "<eos>", "swer"]))
    where = data.draw(st.integers(0, len(ids)))
    ids[where:where] = tiny_tokenizer.encode(hidden, add_special_tokens=False)
    agrees(tiny_tokenizer, ids, (hidden, "zz"))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_watcher_agrees_with_finish_on_pieces_and_bytes(data: Any, pieces: Any) -> None:
    letters = st.lists(st.sampled_from(PIECES + as_bytes("数é")), min_size=1, max_size=80)
    ids = ids_of(pieces, *data.draw(letters))
    agrees(pieces, ids, (data.draw(st.sampled_from(["ab", "<stop>", "数", " foo bar>", "éb"])),))


def test_the_watcher_sees_a_stop_string_in_a_long_response(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer.encode("Natalia sold 48 clips; 数学. " * 60, add_special_tokens=False)
    stop = tiny_tokenizer.encode("</answer>", add_special_tokens=False)
    assert watched_end(tiny_tokenizer, ids + stop, "</answer>") == len(ids) + len(stop)


def test_the_watcher_without_stop_strings_never_stops(pieces: Any) -> None:
    assert watched_end(pieces, ids_of(pieces, "a", "</s>")) is None


# ---------------------------------------------------------------- requests


def test_requests_that_cannot_be_carried_through_are_refused(pieces: Any) -> None:
    stopping = rule(pieces, limit=10)
    check_request(Request(index=0, prompt_ids=(1,) * 6, seed=2**64 - 1), stopping, 16)
    check_request(Request(index=0, prompt_ids=(1,) * 600, seed=0), stopping, None)
    with pytest.raises(EngineError, match="request 3 does not fit: 7 prompt tokens"):
        check_request(Request(index=3, prompt_ids=(1,) * 7, seed=0), stopping, 16)
    with pytest.raises(EngineError, match="empty prompt"):
        check_request(Request(index=0, prompt_ids=(), seed=0), stopping, 16)
    for seed in (-1, 2**64):
        with pytest.raises(EngineError, match="seed"):
            check_request(Request(index=0, prompt_ids=(1,), seed=seed), stopping, 16)
