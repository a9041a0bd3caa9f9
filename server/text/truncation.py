"""Truncation of conversations by their oldest turns. Works on messages; unaware of tokens and limits.

A turn is a user message and everything that answers it, including tool calls and their results, so that no result
remains without its call. System messages and the last turn stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


def count_droppable(messages: Sequence[Message]) -> int:
    """Return the number of turns before the last one."""
    return max(0, len(_turns(messages)) - 1)


def without_oldest(messages: Sequence[Message], num_turns: int) -> tuple[Message, ...]:
    """Return the messages without their first `num_turns` turns."""
    dropped = {place for turn in _turns(messages)[:num_turns] for place in turn}
    return tuple(message for place, message in enumerate(messages) if place not in dropped)


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Return the message indices of each turn; assistant messages before any user message form a turn of their own."""
    turns: list[list[int]] = []
    for place, message in enumerate(messages):
        if message.get("role") == "system":
            continue
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(place)
    return turns
