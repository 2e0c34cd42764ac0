"""Text of tokens as they come: the parts add up to the whole, and hold no half character."""

import random

import pytest

from continual.generation.text_stream import REPLACEMENT, TextStream
from tests.helpers.tiny_models import gpt2_pieces, roberta_pieces, t5_pieces, word_pieces

TEXTS = [
    "red cat",
    "  two  spaces ",
    "猫が魚を食べる。",
    "我喜欢吃苹果",
    "smile 😀👩‍👩‍👧 end",
    "naïve café",
    "",
    "line\n\nbreak\n",
]


def parts_of(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.add(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("pieces", [gpt2_pieces, roberta_pieces, t5_pieces, word_pieces])
@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_add_up_to_the_text(pieces: object, text: str, strip: bool) -> None:
    assert callable(pieces)
    tokenizer = pieces()
    ids = tokenizer(text)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    parts = parts_of(TextStream(tokenizer, strip=strip), ids)
    assert "".join(parts) == (whole.strip() if strip else whole)
    assert not any(REPLACEMENT in part for part in parts), "a character comes when its last byte is there"


@pytest.mark.parametrize("text", ["我喜欢吃苹果", "😀😀😀"])
def test_a_script_without_spaces_comes_character_by_character(text: str) -> None:
    tokenizer = gpt2_pieces()
    parts = parts_of(TextStream(tokenizer), tokenizer(text)["input_ids"])
    assert [part for part in parts if part] == [*text]


def test_any_tokens_add_up_even_where_they_are_no_text() -> None:
    tokenizer, draw = gpt2_pieces(), random.Random(0)
    for _ in range(50):
        ids = [draw.randrange(len(tokenizer)) for _ in range(40)]
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(parts_of(TextStream(tokenizer, strip=False), ids)) == whole


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("the",), "one of"),
        (("of the sea",), "one"),
        (("never",), "one of the sea and one"),
        (("sea", "of"), "one"),
        (("one",), ""),
        (("",), "one of the sea and one"),
    ],
)
def test_the_text_ends_before_a_stop_text(stop: tuple[str, ...], expected: str) -> None:
    tokenizer = gpt2_pieces()
    stream, parts = TextStream(tokenizer, stop=[text for text in stop if text]), []
    for token in tokenizer("one of the sea and one")["input_ids"]:
        parts.append(stream.add(token))
        if stream.stopped:
            break
    parts.append(stream.finish())
    assert "".join(parts) == expected == stream.text
    assert stream.stopped == (not expected.endswith("and one"))


def test_what_may_become_a_stop_text_is_held_back() -> None:
    tokenizer = gpt2_pieces()
    stream, sent = TextStream(tokenizer, stop=["lemon sea"]), ""
    for token in tokenizer("wave lemon coral")["input_ids"]:
        sent += stream.add(token)
        assert not sent.endswith("lemon"), "the stop text could follow"
    assert sent + stream.finish() == "wave lemon coral"
