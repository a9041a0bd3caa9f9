"""Where tokens begin in a text that they spell, or nearly spell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.offsets import token_offsets


@given(st.text(max_size=40), st.lists(st.integers(0, 12), max_size=20))
def test_tokens_that_are_the_text(text: str, sizes: list[int]) -> None:
    data = text.encode()
    pieces, at, expected = [], 0, []
    for size in [*sizes, len(data)]:
        pieces.append(data[at : at + size])
        whole = len(data[:at].decode(errors="ignore"))
        expected.append(whole)
        at = min(at + size, len(data))
    assert token_offsets(text, pieces) == expected


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("ab", ["<bos>", "a", "b"], [0, 0, 1]),
        ("ab", ["a", "<sep>", "b", "<eos>"], [0, 1, 1, 2]),
        ("<bos>ab", ["<bos>", "a", "b"], [0, 5, 6]),  # written out by the client
        ("the fox", ["<s>", " the", " fox"], [0, 0, 3]),  # sentencepiece's first space
        ("Cafe\u0301 now", ["Caf\u00e9", " now", "!"], [0, 5, 9]),  # normalized
        ("A B c d", ["a", " b", " c", " d"], [0, 0, 3, 5]),  # lower case
        ("\ufffd\ufffd!", ["?", "!"], [0, 2]),
        ("", ["a", "b"], [0, 0]),
        ("a", [], []),
    ],
)
def test_tokens_that_are_not_quite_the_text(text: str, pieces: list[str], expected: list[int]) -> None:
    assert token_offsets(text, [piece.encode() for piece in pieces]) == expected


@given(st.text(max_size=30), st.lists(st.binary(max_size=4), max_size=30))
def test_offsets_are_in_the_text_and_never_go_back(text: str, pieces: list[bytes]) -> None:
    offsets = token_offsets(text, pieces)
    assert len(offsets) == len(pieces)
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)
