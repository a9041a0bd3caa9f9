"""Sorting, reversing and repeating lists of up to six. The reasoning of sorting repeatedly takes the least."""

from __future__ import annotations

from typing import Any

from scripts.pocket.items import Item
from scripts.pocket.skills.base import Draw, asked
from scripts.pocket.skills.judge import list_is


def selection(values: list[Any]) -> str:
    """Return a line for each step: the remaining values, and the least of them."""
    left, lines = list(values), []
    while left:
        least = min(left)
        lines.append(f"{_row(left)}: {least}")
        left.remove(least)
    return "\n".join(lines)


def _row(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _numbers(draw: Draw) -> list[int]:
    return draw.rng.sample(range(draw.one((10, 100, 100, 1000))), draw.rng.randint(2, 6))


def _words(draw: Draw) -> list[str]:
    """Return words, mostly with different first letters."""
    found: dict[str, str] = {}
    careless = draw.chance(0.1)
    size = draw.rng.randint(2, 6)
    while len(found) < size:
        word = draw.common_word()
        found.setdefault(word if careless else word[0], word)
    return list(found.values())


_SORT = {
    int: ("Sort these numbers: {}", "Sort {}", "Put these numbers in order: {}"),
    str: ("Sort these words: {}", "Sort {}", "Put these words in alphabetical order: {}"),
}
_REVERSE = ("Reverse this list: {}", "Write this list backwards: {}", "Reverse {}")
_COPY = ("Repeat this list: {}", "Copy this list: {}", "Repeat after me: {}")


def make(draw: Draw, kind: str | None = None) -> Item:
    """Return an item; `kind` is sort, reverse or copy."""
    values: list[Any] = draw.fresh(lambda: _numbers(draw), _row) if draw.chance(0.6) else _words(draw)
    kind = kind or draw.one(("sort", "sort", "sort", "reverse", "reverse", "copy"))
    if kind == "sort":
        question, result = draw.one(_SORT[type(values[0])]), sorted(values)
    else:
        question, result = draw.one(_COPY if kind == "copy" else _REVERSE), values if kind == "copy" else values[::-1]
    answer = _row(result)
    reasoning = selection(values) if kind == "sort" else None
    right = list_is(list(map(str, result)))
    return asked(draw, "lists", question.format(_row(values)), answer, right, reasoning)
