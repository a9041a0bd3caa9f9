"""Search for tags in a text that arrives in pieces. Works on characters only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def find_tag(text: str, tags: Sequence[str], start: int = 0) -> tuple[int, str | None]:
    """Return (start of the first complete tag, that tag), or (start of a possible partial tag at the end, None).

    The search begins at `start`. No tag may be empty.
    """
    found = [(place + len(tag), place, tag) for tag in tags if (place := text.find(tag, start)) >= 0]
    if found:
        _, place, tag = min(found)
        return place, tag
    return min((_place_of_half(text, tag, start) for tag in tags), default=len(text)), None


def _place_of_half(text: str, tag: str, start: int) -> int:
    """Return the start of the longest tail of `text` that begins `tag`; len(text) if there is none."""
    place = text.find(tag[0], max(start, len(text) - len(tag) + 1))
    while place >= 0 and not tag.startswith(text[place:]):
        place = text.find(tag[0], place + 1)
    return place if place >= 0 else len(text)


class TagSet:
    """A set of tags; hundreds are searched about as fast as one. Of two with a common start, the shorter wins."""

    def __init__(self, tags: Iterable[str]) -> None:
        """Compile the tags; none may be empty."""
        shortest: list[str] = []
        for tag in sorted(set(tags), key=len):
            if not tag.startswith(tuple(shortest)):
                shortest.append(tag)
        self._pattern = re.compile("|".join(map(re.escape, shortest)) if shortest else r"(?!)")
        self._halves = frozenset(tag[:size] for tag in shortest for size in range(1, len(tag)))
        self._longest = max(map(len, self._halves), default=0)
        firsts = "".join(sorted({tag[0] for tag in shortest}))
        self._firsts = re.compile(f"[{re.escape(firsts)}]" if firsts else r"(?!)")

        self._has_any = bool(shortest)

    def __bool__(self) -> bool:
        return self._has_any

    def find(self, text: str, start: int) -> tuple[int, str] | None:
        """Return (start of the first complete tag from `start` on, that tag); None if there is none."""
        found = self._pattern.search(text, start)
        return None if found is None else (found.start(), found[0])

    def half_at(self, text: str, start: int) -> int:
        """Return the start, from `start` on, of the longest tail that begins a tag; len(text) if there is none."""
        found = self._firsts.search(text, max(start, len(text) - self._longest))
        while found is not None:
            if text[found.start() :] in self._halves:
                return found.start()
            found = self._firsts.search(text, found.end())
        return len(text)
