"""JSON inside texts that clients or models write: read only as far as what handles it afterwards can go."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from itertools import accumulate
from typing import Any

MOST_DEPTH = 128
"""Brackets that may be open at once. Python's own code gives up at about 1,000, wherever it has got to."""
_MOST_EXACT = 1 << 53
_LEAST_INFINITE = 10**308
_MOST_MARKS = 500_000
"""Of each mark of JSON that a text may have: what it costs to read one depends on these, not on its length."""
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"'))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def read_json(text: str, **options: Any) -> Any:
    """The value. Raises ValueError, also for what is nested too deeply or has too much in it.

    `options`: those of `json.loads`.
    """
    if any(text.count(mark) > _MOST_MARKS for mark in '[{,"'):
        raise ValueError(f"it has more than {_MOST_MARKS} values in it")
    if text.count("[") + text.count("{") > MOST_DEPTH and _is_deeper(text):
        raise ValueError(f"it is nested deeper than {MOST_DEPTH} levels")
    return json.loads(text, **options)


def why_unwritable(value: Any) -> str | None:
    """Why a value that was read cannot be written as JSON again; None where it can. Python reads more than JSON has."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode (half of a surrogate pair)"
    except (ValueError, RecursionError):
        return "it has a number that JSON does not have, or is nested too deeply"
    return None


class WrittenNumber(str):
    """A number with a point or an exponent, as it was written."""

    __slots__ = ()


def is_exact(written: str) -> bool:
    """Whether a double has the value of this number, and its shortest digits do, too."""
    held = float(written)
    return math.isfinite(held) and Decimal(repr(held)) == Decimal(written)


def is_exact_integer(number: int) -> bool:
    """The same of an integer."""
    return abs(number) <= _MOST_EXACT or (abs(number) < _LEAST_INFINITE and Decimal(repr(float(number))) == number)


def inexact_number(value: Any) -> str | None:
    """The first WrittenNumber within that a double would change; None if there is none."""
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
    """Whether a number with a point or an exponent is within."""
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
    """The quotes, brackets and commas of JSON; those of a text are still among them, but for its own quotes."""
    return body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)


def outside_texts(structure: bytes) -> bytes:
    """The brackets and commas that stand in no text."""
    return b"".join(structure.split(b'"')[::2])


def is_deeper(outside: bytes, most: int) -> bool:
    """Whether JSON opens more than `most` brackets at once; `outside`: its brackets and commas."""
    brackets = outside.translate(None, b",")
    if len(brackets) <= most:
        return False
    return any(depth > most for depth in accumulate(map(_STEP.__getitem__, brackets)))
