"""What a conversation can do without: its oldest turns. Knows messages; knows no tokens and no limits.

A turn is a user's message and all that answers it, calls of tools and their results among that, so that no result is
left without its call. System messages stay, and so does the last turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


def count_droppable(messages: Sequence[Message]) -> int:
    """How many turns there are before the last one."""
    return max(0, len(_turns(messages)) - 1)


def without_oldest(messages: Sequence[Message], num_turns: int) -> tuple[Message, ...]:
    """The messages without their first `num_turns` turns."""
    dropped = {place for turn in _turns(messages)[:num_turns] for place in turn}
    return tuple(message for place, message in enumerate(messages) if place not in dropped)


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """The places of each turn's messages; what an assistant says before any user is a turn of its own."""
    turns: list[list[int]] = []
    for place, message in enumerate(messages):
        if message.get("role") == "system":
            continue
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(place)
    return turns
