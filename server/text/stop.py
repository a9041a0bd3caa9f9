"""Matching of stop strings in a text that arrives in pieces.

Works on characters only. Holds back the shortest tail that may still become a stop string, so that no part of one is
emitted.
"""

from __future__ import annotations


class StopStrings:
    """Finds the first complete stop string in one text; of several completed at once, the one that began first.

    The result does not depend on how the text is cut into pieces. Empty strings are ignored.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = tuple(dict.fromkeys(filter(None, strings)))
        self._first_characters = frozenset(string[0] for string in self._strings)
        self._max_held = max(map(len, self._strings), default=1) - 1
        self._held = ""

    def feed(self, text: str, *, may_end: bool = True) -> tuple[str, str | None]:
        """Return (text that may be emitted, the stop string that ended it or None). Must not be called after a match.

        Without `may_end`, a stop string completed by this text is ordinary text.
        """
        if not self._strings:
            return text, None
        seen = self._held + text
        found = self._find(seen) if may_end else None
        if found is not None:
            start, matched = found
            self._held = ""
            return seen[:start], matched
        kept = self._tail_start(seen)
        self._held = seen[kept:]
        return seen[:kept], None

    def flush(self) -> str:
        """Return the text held back, after the text ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> tuple[int, str] | None:
        """Find a stop string that the new text completes; one within the text held back was not allowed to end it."""
        held = len(self._held)
        matches = [(text.find(string, max(0, held - len(string) + 1)), string) for string in self._strings]
        complete = [(start + len(string), start, string) for start, string in matches if start >= 0]
        return min(complete)[1:] if complete else None

    def _tail_start(self, text: str) -> int:
        """Return the start of the longest tail that begins a stop string; len(text) if there is none."""
        for start in range(max(0, len(text) - self._max_held), len(text)):
            if text[start] in self._first_characters and self._begins_stop(text[start:]):
                return start
        return len(text)

    def _begins_stop(self, tail: str) -> bool:
        return any(string.startswith(tail) for string in self._strings)
