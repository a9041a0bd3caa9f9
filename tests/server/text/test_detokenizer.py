"""Detokenizers: the pieces joined are the whole, and no piece ends inside a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.detokenizer import ByteDetokenizer, WindowDetokenizer, strip_spaces
from server.text.tokenizer import ByteTokenizer

_TOKENIZER = ByteTokenizer()
_TRICKY = st.sampled_from([*"中😀é\ufffd a".encode(), 0xC0, 0xED, 0xA0, 0xF4, 0x90, 0xFF, 256, 257])
_IDS = st.lists(_TRICKY | st.integers(0, 259), max_size=40)


def _window() -> WindowDetokenizer:
    return WindowDetokenizer(_TOKENIZER.decode, frozenset({256, 257, 258, 259}))


@pytest.mark.parametrize("build", [_TOKENIZER.detokenizer, _window])
@given(ids=_IDS)
def test_pushes_and_flush_are_the_decoded_whole(build, ids):
    detokenizer = build()
    assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == _TOKENIZER.decode(ids)


@pytest.mark.parametrize("build", [_TOKENIZER.detokenizer, _window])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_no_character_is_given_out_broken(build, text):
    detokenizer = build()
    pushed = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pushed) == text
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("build", [_TOKENIZER.detokenizer, _window])
def test_flush_gives_an_incomplete_tail_as_a_replacement(build):
    detokenizer = build()
    assert [detokenizer.push(token) for token in (0x61, 0xE4, 0xB8)] == ["a", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@given(ids=_IDS, strip=st.integers(0, 3))
def test_leading_spaces_are_stripped_once(ids, strip):
    spaced = [0x20, 0x20, *ids]
    detokenizer = ByteDetokenizer(lambda token: bytes([token]) if token < 256 else b"", strip)
    streamed = "".join([*map(detokenizer.push, spaced), detokenizer.flush()])
    assert streamed == strip_spaces(_TOKENIZER.decode(spaced), strip)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [("  a ", 1, " a "), ("  a", 3, "a"), ("  ", 1, " "), ("\n a", 1, "\n a"), ("", 1, "")],
)
def test_strip_spaces(text, count, expected):
    assert strip_spaces(text, count) == expected


def test_the_window_stays_small_whatever_comes():
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return _TOKENIZER.decode(ids)

    detokenizer = WindowDetokenizer(decode, frozenset({256}))
    ids = [0x61] * 200 + [256] * 500 + [0xFF] * 500 + [0x62]
    text = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    assert text == _TOKENIZER.decode(ids)
    assert longest <= 128


def test_the_window_keeps_the_context_that_a_word_boundary_needs():
    def decode(ids: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in ids)

    detokenizer = WindowDetokenizer(decode)
    assert [detokenizer.push(token) for token in (1, 2, 3)] == ["w1", " w2", " w3"]
