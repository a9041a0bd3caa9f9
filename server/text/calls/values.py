"""Values in calls, exactly as written: JSON, and the variants that models write for JSON.

A number keeps its source text, so that no digit is lost. Independent of schemas and calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from server.json_text import MOST_DEPTH, read_json

_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*+(?:"|\\?\Z))|,(?=\s*[}\]])', re.DOTALL)
_JSON_ESCAPE = re.compile(r"""\\(["\\/bfnrt]|u[0-9a-fA-F]{4}|')?""")
_STRING_START = re.compile(r"""([rRuU]?)(?=["'])""")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS: dict[str, Any] = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_SPACE = re.compile(r"\s*")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(\n|[^\n]))", re.DOTALL)
_ESCAPES = {
    "\n": "", "\\": "\\", "'": "'", '"': '"', "/": "/",
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip


class Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


def read_exact(text: str) -> Any:
    """Return the value of JSON, its numbers as `Number`; texts may contain raw control characters.

    A trailing comma is skipped, and a backslash that escapes nothing stays. Raises ValueError.
    """
    try:
        return _read(text)
    except ValueError:
        mended = _JSON_ESCAPE.sub(_mended, _TRAILING_COMMA.sub(r"\1", text))
        if mended == text:
            raise
    return _read(mended)


def _mended(found: re.Match[str]) -> str:
    if found[1] == "'":
        return "'"
    return found[0] if found[1] else "\\\\"


def _read(text: str) -> Any:
    return read_json(text, strict=False, parse_int=Number, parse_float=Number, parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def read_lenient(text: str) -> Any:
    """Return the value of JSON, or of a Python literal. Raises ValueError."""
    try:
        return read_exact(text)
    except ValueError:
        return read_literal(text)


def write_exact(value: Any) -> str:
    """Return the JSON of a value that `read_exact` or `read_literal` may have returned."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write_exact(str(key))}: {write_exact(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_exact, value)) + "]"
    return json.dumps(value)


def read_literal(text: str) -> Any:
    """Return the value of a Python literal: texts in either quote, lists, tuples, dictionaries, JSON numbers.

    `true`, `false` and `null` are accepted too. Raises ValueError.
    """
    value, end = literal_at(text, 0)
    if text[end:].strip():
        raise ValueError("something follows the value")
    return value


def literal_at(text: str, at: int) -> tuple[Any, int]:
    """Return the Python literal that begins at `at`, and its end. Raises ValueError."""
    return _Literals(text).value(at, 0)


class _Literals:
    """Parser of Python literals in one text, from given positions."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        if depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        at = self._skip(at)
        first = self._text[at : at + 1]
        if first and (start := _STRING_START.match(self._text, at)) is not None:
            return self._strings(at, start)
        if first and first in "[(":
            return self._items(at, "]" if first == "[" else ")", lambda place: self.value(place, depth + 1))
        if first == "{":
            pairs, end = self._items(at, "}", lambda place: self._pair(place, depth + 1))
            return dict(pairs), end
        if (number := _NUMBER.match(self._text, at)) is not None:
            return Number(number[0]), number.end()
        word = _WORD.match(self._text, at)
        if word is None or word[0] not in _WORDS:
            raise ValueError(f"there is no value at character {at}")
        return _WORDS[word[0]], word.end()

    def _pair(self, at: int, depth: int) -> tuple[tuple[str, Any], int]:
        key, at = self.value(at, depth)
        at = self._skip(at)
        if not isinstance(key, str) or self._text[at : at + 1] != ":":
            raise ValueError(f"there is no key at character {at}")
        value, at = self.value(at + 1, depth)
        return (key, value), at

    def _items(self, at: int, end: str, read: Callable[[int], tuple[Any, int]]) -> tuple[list[Any], int]:
        items = []
        at = self._skip(at + 1)
        while self._text[at : at + 1] != end:
            item, at = read(at)
            items.append(item)
            at = self._skip(at)
            if self._text[at : at + 1] == ",":
                at = self._skip(at + 1)
            elif self._text[at : at + 1] != end:
                raise ValueError(f"a comma is missing at character {at}")
        return items, at + 1

    def _strings(self, at: int, start: re.Match[str] | None) -> tuple[str, int]:
        """Read a text, or several adjacent ones."""
        pieces, end = [], at
        while start is not None:
            piece, end = self._string(start.end(), is_raw=start[1] in ("r", "R"))
            pieces.append(piece)
            start = _STRING_START.match(self._text, self._skip(end))
        return "".join(pieces), end

    def _string(self, at: int, *, is_raw: bool = False) -> tuple[str, int]:
        mark = self._text[at] * 3 if self._text.startswith(self._text[at] * 3, at) else self._text[at]
        end = at + len(mark)
        while not self._text.startswith(mark, end):
            end += 2 if self._text[end : end + 1] == "\\" else 1
            if end >= len(self._text):
                raise ValueError("a text is not closed")
        text = self._text[at + len(mark) : end]
        return text if is_raw else _unescaped(text), end + len(mark)

    def _skip(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at


def _unescaped(text: str) -> str:
    r"""Return a text with Python's escapes decoded; a backslash before anything else stays (`\d`)."""

    def read(found: re.Match[str]) -> str:
        hexadecimal, octal = found[1] or found[2] or found[3], found[4]
        if hexadecimal or octal:
            code = int(hexadecimal, 16) if hexadecimal else int(octal, 8)
            return chr(code) if code < 0x110000 else found[0]
        return _ESCAPES.get(found[5], found[0])

    return _ESCAPE.sub(read, text) if "\\" in text else text
