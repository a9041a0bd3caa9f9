"""What answers have in common: headers, usage, numbers and quoted texts."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dialects.answers import ignored_header
from server.dialects.openai_written import LEAST_LOGPROB, encode_usage, finite, quote
from server.text.events import Usage


@given(st.lists(st.text(), max_size=50))
def test_the_header_of_ignored_fields_is_always_sendable(names: list[str]) -> None:
    for value in ignored_header(names).values():
        assert value.isascii()
        assert value.isprintable()
        assert len(value) < 4000


def test_the_header_of_ignored_fields() -> None:
    assert ignored_header([]) == {}
    assert ignored_header(["b", "a", "c\r\nX: y"]) == {"X-Pippin-Ignored-Fields": "a, b, c??X??y"}


def test_usage() -> None:
    assert encode_usage(Usage(5, 2, 3)) == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e30])
def test_logprobs_are_finite(value: float) -> None:
    assert finite(value) == LEAST_LOGPROB


def test_a_usual_logprob_is_itself() -> None:
    assert finite(-0.125) == -0.125


@given(st.text())
def test_quoted_text_reads_back(text: str) -> None:
    assert json.loads(quote(text).encode()) == text
    assert "\n" not in quote(text)
