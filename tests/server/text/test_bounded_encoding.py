"""Texts that are much too long: they are refused, and most of them is never looked at."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.bounded_encoding import TooLong, count_tokens, encode_up_to
from server.text.tokenizer import ByteTokenizer


class Watched(ByteTokenizer):
    """Knows how many characters it was given."""

    num_chars = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.num_chars += len(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


class Runs(ByteTokenizer):
    """A token for each run of a character, whatever its length."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(character) for place, character in enumerate(text) if place == 0 or text[place - 1] != character]


def test_what_is_much_too_long_is_not_read_to_its_end() -> None:
    tokenizer = Watched()
    with pytest.raises(TooLong) as caught:
        encode_up_to(tokenizer, "x" * 10_000_000, 1000, add_special_tokens=False)
    assert tokenizer.num_chars < 30_000
    assert caught.value.num_tokens == tokenizer.num_chars


def test_what_is_long_in_characters_alone_is_encoded() -> None:
    text = "x" * 1_000_000 + "y"
    assert encode_up_to(Runs(), text, 10, add_special_tokens=False) == [ord("x"), ord("y")]


@given(st.integers(1, 300), st.integers(0, 40_000))
@settings(max_examples=50, deadline=None)
def test_what_fits_is_always_encoded_whole(most: int, length: int) -> None:
    text = "ab" * (length // 2)
    try:
        ids = encode_up_to(ByteTokenizer(), text, most, add_special_tokens=True)
    except TooLong as error:
        assert most < error.num_tokens <= len(text) + 1
    else:
        assert ids == ByteTokenizer().encode(text, add_special_tokens=True)
    assert encode_up_to(ByteTokenizer(), text, len(text) + 1, add_special_tokens=True)[1:] == list(text.encode())


def test_tokens_are_counted_in_pieces() -> None:
    assert count_tokens(ByteTokenizer(), "x" * 1_234_567) == 1_234_567
    assert count_tokens(ByteTokenizer(), "") == 0
