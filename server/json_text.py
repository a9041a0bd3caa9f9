"""JSON inside texts that clients or models write: read only as far as what handles it afterwards can go."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

MOST_DEPTH = 128
"""Brackets that may be open at once. Python's own code gives up at about 1,000, wherever it has got to."""
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
