"""JSON inside texts: read as json reads it, and refused where it is too deep or too much."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.json_text import MOST_DEPTH, read_json

TEXTS = st.text(alphabet=st.sampled_from('[]{}"\\ab\n\u00e9🙂'), max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(VALUES, st.booleans())
def test_what_json_reads_is_read(value: Any, ascii: bool) -> None:
    assert read_json(json.dumps(value, ensure_ascii=ascii)) == value


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 3000, 100_000])
def test_what_is_too_deep_is_refused(opening: str, closing: str, whole: bool, depth: int) -> None:
    text = opening * depth + ("1" + closing * depth if whole else "")
    with pytest.raises(ValueError, match=f"deeper than {MOST_DEPTH} levels"):
        read_json(text)
    assert read_json("[" * MOST_DEPTH + "]" * MOST_DEPTH)


def test_brackets_in_texts_are_no_depth() -> None:
    text = "[" * 3000 + '"\\'
    assert read_json(json.dumps([text, text])) == [text, text]


@pytest.mark.parametrize("text", ["[" + "[]," * 600_000 + "1]", json.dumps(["a"] * 600_000), "1," * 600_000])
def test_what_has_too_much_in_it_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="values in it"):
        read_json(text)


@pytest.mark.parametrize("text", ["", "{", "nul", '"\\ud800', "[1,]"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_json(text)
