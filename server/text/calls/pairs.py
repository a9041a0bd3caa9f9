"""Incremental parser of arguments written as a sequence of tagged values.

A closing tag counts only if a valid continuation follows: another argument, or the end of the call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from functools import cache

from server.text.calls.arguments import Argument
from server.text.calls.form import CallForm, Pair
from server.text.calls.growing import GrowingText, Parse
from server.text.calls.offered import PREFIX, OfferedTools

LONGEST_HEAD = 600
"""Characters within which a head must match."""
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)
_CDATA_START, _CDATA_END = "<![CDATA[", "]]>"
_ATTRIBUTES = r"""(?:\s+[\w:-]{1,40}=(?:"[^"<>]{0,200}"|'[^'<>]{0,200}'|[\w.-]{1,200})){0,8}\s*"""
"""Attributes of a tag other than the name, which some models write."""
_PLACES = re.compile(r"\{(key|flag|nl)\}")


class Leniency(IntEnum):
    """Choice of a closing tag. All but the first are for an answer that ended without one that counts."""

    NONE = 0
    UNBALANCED = 1
    """Tags opened within a value need not be closed."""
    LACKING = 2
    """Required arguments may be missing."""


class PairReader:
    """Parses the arguments of calls within one section of the family `form`."""

    def __init__(self, form: CallForm, tools: OfferedTools, text: GrowingText, leniency: Leniency) -> None:
        self._form, self._tools, self._text, self._leniency = form, tools, text, leniency

    def pairs(self, form: CallForm, name: str, at: int, ends: Sequence[str]) -> Parse[tuple[list[Argument], int]]:
        """Return the arguments from `at` on, and their end; `ends`: the tags that close the section."""
        pair = form.pair
        assert pair is not None
        text, opening = self._text, pair.head.partition("{")[0]
        head = _pattern_of(pair.head)
        offered = self._tools.resolve(name)
        required = self._tools.required_of(offered)
        arguments: dict[str, Argument] = {}
        while True:
            place = yield from text.space(at)
            if (yield from text.starts(place, (opening,))) is None:
                return list(arguments.values()), at
            found = yield from text.match(place, head, LONGEST_HEAD)
            key = found["key"].strip()
            missing = required - arguments.keys() - {key}
            others = frozenset({key, *arguments})
            raw, at = yield from self._value(
                form, pair, found.end(), ends, offered, others, is_last_allowed=not missing
            )
            arguments[key] = _argument(pair, key, raw, found.groupdict().get("flag"))

    def _value(
        self,
        form: CallForm,
        pair: Pair,
        at: int,
        ends: Sequence[str],
        offered: str | None,
        given: frozenset[str],
        *,
        is_last_allowed: bool,
    ) -> Parse[tuple[str, int]]:
        """Return the text of a value and the end of its closing tag, the first that counts.

        If tags are missing, the head of another of the tool's arguments, not yet `given`, also ends it.
        """
        text, head = self._text, pair.head.partition("{")[0]
        opening = pair.head.rpartition("}")[2] if form.mid == "{nl}" else head
        if pair.cdata and (yield from self._is_cdata(at)):
            return (yield from self._cdata(pair, at))
        begin, depth = at, 0
        is_lenient = self._leniency > Leniency.NONE
        tags = (pair.tail, opening, head) if is_lenient else (pair.tail, opening)
        while True:
            place, tag = yield from text.find(at, tags)
            at = place + len(tag)
            if is_lenient and tag == head and self._begins_other(pair, place, offered, given):
                return text.text[begin:place].rstrip(), place
            if tag in (opening, head):
                depth += self._leniency == Leniency.NONE
            elif depth:
                depth -= 1
            elif (yield from self._counts(form, pair, at, ends, is_last_allowed=is_last_allowed)):
                return text.text[begin:place], at

    def _begins_other(self, pair: Pair, at: int, offered: str | None, given: frozenset[str]) -> bool:
        found = _pattern_of(pair.head).match(self._text.text, at)
        key = found["key"].strip() if found else ""
        return key not in given and self._tools.knows(offered, key)

    def _is_cdata(self, at: int) -> Parse[bool]:
        place = yield from self._text.space(at)
        return (yield from self._text.starts(place, (_CDATA_START,))) is not None

    def _cdata(self, pair: Pair, begin: int) -> Parse[tuple[str, int]]:
        """Return a CDATA-wrapped value and the end of its closing tag: tags within are text."""
        at = begin
        while True:
            place, _ = yield from self._text.find(at, (_CDATA_END,))
            at = place + len(_CDATA_END)
            end = yield from self._text.space(at)
            if (yield from self._text.starts(end, (pair.tail,))) is not None:
                return self._text.text[begin:end], end + len(pair.tail)

    def _counts(
        self, form: CallForm, pair: Pair, at: int, ends: Sequence[str], *, is_last_allowed: bool
    ) -> Parse[bool]:
        """Return whether a closing tag is followed by another argument or the end of the call."""
        text = self._text
        place = yield from text.space(at)
        if (yield from text.starts(place, (pair.head.partition("{")[0],))) is not None:
            return True
        if not is_last_allowed and self._leniency < Leniency.LACKING:
            return False
        if text.is_ended and place == len(text.text):
            return text.is_finished
        if (yield from text.starts(place, ends)) is not None:
            return True
        tail = form.tail.split()[0] if form.tail else ""
        if not tail:
            start = self._form.start
            return bool(start) and (yield from text.starts(place, (start,))) is not None
        if (yield from text.starts(place, (tail,))) is None:
            return False
        if not ends:
            return True
        place = yield from text.space(place + len(tail))
        return (text.is_ended and place == len(text.text)) or (
            yield from text.starts(place, (*ends, self._form.start, without_prefix(form.head).split()[0]))
        ) is not None


def without_prefix(head: str) -> str:
    """Return the head of a call without a name prefix at its end, which a model may omit."""
    prefix = PREFIX.search(head)
    return head[: prefix.start()] if prefix and prefix.end() == len(head) else head


@cache
def _pattern_of(head: str) -> re.Pattern[str]:
    """Return the pattern of an argument's head, tolerant of white space and of the quotes around attributes."""
    written = []
    is_quoted = '"{key}"' in head
    for piece in _PLACES.split(head):
        if piece == "key":
            written.append(r"(?P<key>[^<>\n\"']+?)" if is_quoted else r"(?P<key>[^<>\n]+?)")
        elif piece == "flag":
            written.append(r"(?P<flag>\w*)")
        elif piece == "nl":
            written.append(r"\s*")
        else:
            exact = r"\s+".join(map(re.escape, piece.split(" "))).replace('"', "[\"']?")
            written.append(exact.replace(">", _ATTRIBUTES + ">", 1) if is_quoted and piece.startswith('">') else exact)
    return re.compile("".join(written))


def _argument(pair: Pair, key: str, raw: str, flag: str | None) -> Argument:
    if pair.cdata and (wrapped := _CDATA.fullmatch(raw)) is not None:
        raw = wrapped[1]
    if pair.frame == "\n" and raw.startswith("\r\n"):
        raw = raw.removeprefix("\r\n").removesuffix("\r\n")
    elif pair.frame:
        raw = raw.removeprefix(pair.frame).removesuffix(pair.frame)
    return Argument(key, raw, "text" if flag is not None and flag == pair.text_flag else "unknown")
