"""A text that arrives in pieces, with the operations of a parser. A parser is a generator that yields to get more text.

Every operation takes a position in the text, so that lookahead needs no backtracking.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import TypeVar

from server.json_text import MOST_DEPTH
from server.text.parsers.tags import find_tag

T = TypeVar("T")
Parse = Generator[None, None, T]

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[\w.:/@-]+")
_LONGEST_NAME = 256
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_IN_VALUES = r"\s\w.+\-:,="
"""Characters between the brackets and texts of JSON, or of a Python literal."""


class NotACall(Exception):
    """The text parsed so far can never become a call."""


class GrowingText:
    """The text so far. `is_ended`: it is complete; `is_cut`: its writer had not finished."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.is_ended = False
        self.is_cut = False

    @property
    def is_finished(self) -> bool:
        """Whether the writer finished the text: closing marks missing at its end were omitted."""
        return self.is_ended and not self.is_cut

    def space(self, at: int) -> Parse[int]:
        """Return the end of the white space from `at` on; the end of the text only once it is complete."""
        while True:
            found = _SPACE.match(self.text, at)
            at = found.end() if found else at
            if at < len(self.text) or self.is_ended:
                return at
            yield

    def starts(self, at: int, options: Sequence[str]) -> Parse[str | None]:
        """Return the longest option that begins at `at`; None if there is none."""
        while True:
            rest = self.text[at : at + max(map(len, options), default=0)]
            may_come = any(len(rest) < len(option) and option.startswith(rest) for option in options)
            if self.is_ended or not may_come:
                return max((option for option in options if rest.startswith(option)), key=len, default=None)
            yield

    def expect(self, at: int, options: Sequence[str]) -> Parse[None]:
        """Raise NotACall unless one of the options begins at `at`."""
        if (yield from self.starts(at, options)) is None:
            raise NotACall

    def skip(self, at: int, template: str) -> Parse[int]:
        """Return the end of the words of `template`, any white space before each. Raises NotACall if one is missing."""
        for word in template.split():
            at = yield from self.space(at)
            yield from self.expect(at, (word,))
            at += len(word)
        return at

    def find(self, at: int, tags: Sequence[str]) -> Parse[tuple[int, str]]:
        """Return (start of the first of the tags, that tag). Raises NotACall if none occurs before the end."""
        while True:
            place, tag = find_tag(self.text, tags, at)
            if tag is not None:
                return place, tag
            if self.is_ended:
                raise NotACall
            at = place
            yield

    def word(self, at: int) -> Parse[str]:
        """Return the characters of a name from `at` on. Raises NotACall if there are none, or too many."""
        while True:
            found = _NAME.match(self.text, at)
            end = found.end() if found else at
            if end - at > _LONGEST_NAME:
                raise NotACall
            if end < len(self.text) or self.is_ended:
                if end == at:
                    raise NotACall
                return self.text[at:end]
            yield

    def match(self, at: int, pattern: re.Pattern[str], most: int) -> Parse[re.Match[str]]:
        """Return the match at `at`, which takes at most `most` characters and does not depend on what follows.

        Raises NotACall.
        """
        while True:
            found = pattern.match(self.text, at, at + most)
            if found is not None:
                return found
            if self.is_ended or len(self.text) - at >= most:
                raise NotACall
            yield

    def value(self, at: int, quote: str = "", ends: Sequence[str] = ()) -> Parse[tuple[str, int]]:
        """Return (text, end) of the object, list or call's parentheses that begin at `at`.

        `quote`: encloses texts, in addition to double quotes; empty for single and double quotes. Closing brackets
        missing before one of `ends`, or at the end of the answer, are added. Raises NotACall.
        """
        quotes = (quote, '"') if quote else ("'", '"')
        marks = re.compile("|".join((*map(re.escape, quotes), r"[{}\[\]()]", rf"[^{_IN_VALUES}]")))
        expected: list[str] = []
        place = at
        while True:
            found = yield from self._next_mark(place, marks, len(quotes[0]))
            if found is None:
                if not expected or self.is_cut:
                    raise NotACall
                return self.text[at:] + "".join(reversed(expected)), len(self.text)
            mark, place = found[0], found.end()
            if mark in quotes:
                place = yield from self._text_end(place, mark)
            elif mark in _CLOSING and len(expected) < MOST_DEPTH:
                expected.append(_CLOSING[mark])
            elif expected and mark == expected[-1]:
                expected.pop()
                if not expected:
                    return self.text[at:place], place
            elif expected and (yield from self.starts(found.start(), ends)) is not None:
                return self.text[at : found.start()] + "".join(reversed(expected)), found.start()
            else:
                raise NotACall

    def _next_mark(self, at: int, marks: re.Pattern[str], longest: int) -> Parse[re.Match[str] | None]:
        """Return the next mark from `at` on, of up to `longest` characters; None if there is none."""
        while True:
            found = marks.search(self.text, at)
            if found is not None and (self.is_ended or len(self.text) - found.start() >= longest):
                return found
            if self.is_ended:
                return None
            at = len(self.text) if found is None else found.start()
            yield

    def _text_end(self, at: int, quote: str) -> Parse[int]:
        """Return the end of the text that began before `at`, including its closing quote. Raises NotACall."""
        if len(quote) > 1:
            place, _ = yield from self.find(at, (quote,))
            return place + len(quote)
        while True:
            place, tag = yield from self.find(at, (quote, "\\"))
            if tag == quote:
                return place + 1
            while len(self.text) < place + 2:
                if self.is_ended:
                    raise NotACall
                yield
            at = place + 2
