"""Checks of answers: by the number, list, value or call in it; by its wording only if that is fixed."""

# ruff: noqa: RUF001 - the marks are Chinese

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.pocket.skills.base import Check

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_NONE = re.compile(r"\b(?:no|none|zero)\b|没有", re.IGNORECASE)


def last_sentence(text: str) -> str:
    return next((part for part in reversed(_SENTENCE_END.split(text.strip())) if part.strip()), "").strip()


def last_number_is(expected: int) -> Check:
    """Check the last number of the last sentence; "no", "none" and "zero" are 0 if there is no digit."""

    def check(text: str) -> bool:
        sentence = last_sentence(text)
        found = _NUMBER.findall(sentence)
        if not found:
            return expected == 0 and bool(_NONE.search(sentence))
        return float(found[-1]) == expected

    return check


def first_number_is(expected: str) -> Check:
    """Check the first number of the last sentence, as written."""

    def check(text: str) -> bool:
        found = _NUMBER.findall(last_sentence(text))
        return bool(found) and found[0] == expected

    return check


def text_is(expected: str) -> Check:
    """Check the whole text, case included, ignoring surrounding space."""
    return lambda text: text.strip() == expected


def says(*alternatives: str) -> Check:
    """Check for one of the alternatives in the last sentence as a separate word, case included."""
    patterns = [re.compile(rf"(?<![A-Za-z0-9]){re.escape(each)}(?![A-Za-z0-9])") for each in alternatives]
    return lambda text: any(pattern.search(last_sentence(text)) for pattern in patterns)


def list_is(expected: Sequence[str]) -> Check:
    """Check that the last line is these items between commas, with or without a full stop."""

    def check(text: str) -> bool:
        lines = text.strip().splitlines()
        return bool(lines) and [part.strip() for part in lines[-1].rstrip(" .").split(",")] == list(expected)

    return check


def spelling_is(word: str) -> Check:
    """Check for the letters of the word, separated."""
    letters = list(word.lower())
    return lambda text: re.findall(r"(?<![a-z])[a-z](?![a-z])", text.lower()) == letters


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)  # distinguishes True from 1, which == does not


def json_is(expected: object) -> Check:
    """Check that the whole text is JSON of this value, in any order of the keys."""

    def check(text: str) -> bool:
        try:
            return _canonical(json.loads(text)) == _canonical(expected)
        except ValueError:
            return False

    return check


def call_is(name: str, arguments: Mapping[str, Any]) -> Check:
    """Check for exactly one tool call, with this name and these arguments."""

    def check(text: str) -> bool:
        calls = _CALL.findall(text)
        return len(calls) == 1 and json_is({"name": name, "arguments": dict(arguments)})(calls[0])

    return check


def calls_nothing(right: Check) -> Check:
    return lambda text: "<tool_call>" not in text and right(text)
