"""The order in which lines are sent: lines with a common prompt prefix together, so that it is computed once.

Sorted by the text of the prompt, lines walk a tree of prefixes from left to right: each prefix stays current until the
last line that has it. Lines are sorted within windows, in bounded memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

WINDOW_LINES = 8192
WINDOW_BYTES = 16 << 20
_PARTS = {
    "/v1/chat/completions": ("tools", "messages"),
    "/v1/completions": ("prompt",),
    "/v1/messages": ("tools", "system", "messages"),
    "/v1/responses": ("tools", "instructions", "input"),
}
"""Fields that form the prompt, in the order of templates. Embedding inputs share no prefix."""


class Sortable(Protocol):
    """A line that can be sorted."""

    @property
    def number(self) -> int: ...

    @property
    def prefix(self) -> str: ...

    @property
    def body(self) -> bytes: ...


L = TypeVar("L", bound=Sortable)


def prefix_of(url: str, body: Mapping[str, Any]) -> str:
    """Return a text whose prefixes match those of the prompt, as far as they are known without its template."""
    found = [str(body.get("model")), url]
    for name in _PARTS.get(url, ()):
        value = body.get(name)
        for each in value if isinstance(value, list) else [value]:
            found += _texts(each)
    return "\0".join(found)


def in_prefix_order(lines: Iterable[L]) -> list[L]:
    """Return the lines with common prefixes next to each other; equal lines stay in the order of the file."""
    return sorted(lines, key=lambda line: (line.prefix, line.number))


def windows(lines: Iterable[L], max_lines: int = WINDOW_LINES, max_bytes: int = WINDOW_BYTES) -> Iterator[list[L]]:
    """Yield the lines in groups, each in sending order. A line larger than a group is alone."""
    group: list[L] = []
    num_bytes = 0
    for line in lines:
        size = len(line.body) + len(line.prefix)
        if group and (len(group) >= max_lines or num_bytes + size > max_bytes):
            yield in_prefix_order(group)
            group, num_bytes = [], 0
        group.append(line)
        num_bytes += size
    if group:
        yield in_prefix_order(group)


def _texts(value: Any) -> list[str]:
    """Return the texts of a part of the prompt, in the order of the prompt, whatever the order of its fields."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        role, content = value.get("role"), value.get("content")
        rest = {name: each for name, each in value.items() if name not in ("role", "content")}
        parts = content if isinstance(content, list) else [content]
        texts = [each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in parts]
        return [str(role), *texts, json.dumps(rest, sort_keys=True) if rest else ""]
    return [json.dumps(value)]
