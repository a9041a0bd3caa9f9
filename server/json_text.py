"""JSON in texts from clients or models, read only to a size and depth that later code can handle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from itertools import accumulate
from typing import Any

MOST_DEPTH = 128
"""Most nested brackets. Python's own code fails at about 1,000, wherever it is."""
_MOST_EXACT = 1 << 53
_LEAST_INFINITE = 10**308
_MOST_MARKS = 500_000
"""Limit per structural character: the cost of reading depends on their number, not on the length."""
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"'))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def read_json(text: str, **options: Any) -> Any:
    """Return the value. Raises ValueError, also if the text is nested too deeply or has too many values.

    `options`: those of `json.loads`.
    """
    if any(text.count(mark) > _MOST_MARKS for mark in '[{,"'):
        raise ValueError(f"it has more than {_MOST_MARKS} values in it")
    if text.count("[") + text.count("{") > MOST_DEPTH and _is_deeper(text):
        raise ValueError(f"it is nested deeper than {MOST_DEPTH} levels")
    return json.loads(text, **options)


def why_unwritable(value: Any) -> str | None:
    """Return why a parsed value cannot be written as JSON, or None: Python reads more than JSON allows."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode (half of a surrogate pair)"
    except (ValueError, RecursionError):
        return "it has a number that JSON does not have, or is nested too deeply"
    return None


class WrittenNumber(str):
    """A number with a point or an exponent, in its original spelling."""

    __slots__ = ()


def is_exact(written: str) -> bool:
    """Return whether a double has the value of this number, and so do its shortest digits."""
    held = float(written)
    return math.isfinite(held) and Decimal(repr(held)) == Decimal(written)


def is_exact_integer(number: int) -> bool:
    """Return whether a double has the value of this integer, and so do its shortest digits."""
    return abs(number) <= _MOST_EXACT or (abs(number) < _LEAST_INFINITE and Decimal(repr(float(number))) == number)


def inexact_number(value: Any) -> str | None:
    """Return the first nested WrittenNumber that a double would change; None if there is none."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, WrittenNumber) and not is_exact(each):
            return str(each)
        if isinstance(each, Mapping):
            left += each.values()
        elif isinstance(each, list):
            left += each
    return None


def has_float(value: Any) -> bool:
    """Return whether the value contains a number with a point or an exponent."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, float):
            return True
        if isinstance(each, Mapping):
            left += each.values()
        elif isinstance(each, list):
            left += each
    return False


def _is_deeper(text: str) -> bool:
    return is_deeper(outside_texts(structure_of(text.encode("utf-8", "replace"))), MOST_DEPTH)


def structure_of(body: bytes) -> bytes:
    """Return the quotes, brackets and commas of JSON, those within strings included, except escaped quotes."""
    return body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)


def outside_texts(structure: bytes) -> bytes:
    """Return the brackets and commas outside strings."""
    return b"".join(structure.split(b'"')[::2])


def is_deeper(outside: bytes, most: int) -> bool:
    """Return whether JSON nests more than `most` brackets; `outside`: its brackets and commas."""
    brackets = outside.translate(None, b",")
    if len(brackets) <= most:
        return False
    return any(depth > most for depth in accumulate(map(_STEP.__getitem__, brackets)))
