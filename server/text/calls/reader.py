"""Incremental parser of a section of calls, by the form of the model's family.

Yields the raw text of each argument; the tool's schema gives its type. A closing tag counts only if it completes the
call: a valid continuation follows, tags opened within a value are closed, and required arguments are present. If the
answer ends without such a tag, the nearest match is taken (`Leniency`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.text.calls.arguments import (
    ARGUMENTS,
    BESIDE,
    NAMES,
    Argument,
    bare_arguments,
    call_in,
    items_of,
    json_arguments,
    python_arguments,
)
from server.text.calls.form import CallForm
from server.text.calls.growing import GrowingText, NotACall, Parse
from server.text.calls.offered import OfferedTools
from server.text.calls.pairs import LONGEST_HEAD, Leniency, PairReader, without_prefix

_FENCE_END = "```"
_FENCE = re.compile(r"```[\w+-]*(?=[^\w+-])")
_KEY = re.compile(r"""\{\s*(["'])((?:[^"'\\]|\\.)*)\1\s*:\s*(?=\S)""")
_STRING = re.compile(r"""(["'])((?:[^"'\\]|\\.)*)\1""")
_MOST_EXTRA_BRACES = 3


@dataclass(frozen=True, slots=True)
class FoundCall:
    """One call, written as `raw`; `arguments` is JSON, `id` the model's own.

    `name` is None if no such tool was offered; `is_whole`: every required argument is present, given as an argument.
    """

    name: str | None
    arguments: str
    id: str | None
    is_whole: bool
    raw: str


class SectionReader:
    """Parser of one section. Its methods raise NotACall; the positions they return are in the text."""

    def __init__(
        self, form: CallForm, tools: OfferedTools, text: GrowingText, leniency: Leniency = Leniency.NONE
    ) -> None:
        self._form, self._tools, self._text = form, tools, text
        self._pairs = PairReader(form, tools, text, leniency)
        self.read_until = 0
        """End of the last call that was parsed completely; 0 if there is none."""
        self.has_begun = False
        """Whether a name or an object has been read: what follows belongs to a call, or to an attempt at one."""

    def section(self, at: int) -> Parse[tuple[list[FoundCall], int]]:
        """Return the calls of the section that opens at `at`, and the section's end."""
        for form in (self._form, *self._form.also):
            try:
                return (yield from self._section(form, at))
            except (NotACall, ValueError):
                continue
        raise NotACall

    def _section(self, form: CallForm, at: int) -> Parse[tuple[list[FoundCall], int]]:
        text = self._text
        start, end = form.start or self._form.start, form.end or self._form.end
        is_tagged = bool(start) and (yield from text.starts(at, (start,))) is not None
        if is_tagged:
            at += len(start)
        elif form.style == "object":
            yield from self._check_first_member(form, at)
        calls, at = yield from self._calls(form, at, (end,) if end else ())
        at, is_closed = yield from self._closing(start, end, at, is_tagged=is_tagged)
        is_marked = is_tagged or form.style not in ("object", "python")
        if not is_marked and not is_closed:
            yield from self._check_alone(calls, at)
        return calls, at

    def _calls(self, form: CallForm, at: int, ends: Sequence[str]) -> Parse[tuple[list[FoundCall], int]]:
        if form.style == "object":
            return (yield from self._objects(form, at, ends))
        if form.style == "python":
            return (yield from self._python(at, ends))
        call, at = yield from self._named(form, at, ends)
        calls = [call]
        while form.between is not None and form.head:
            place = yield from self._text.space(at)
            if (yield from self._text.starts(place, (without_prefix(form.head).split()[0],))) is None:
                break
            call, at = yield from self._named(form, place, ends)
            calls.append(call)
        return calls, at

    def _closing(self, start: str, end: str, at: int, *, is_tagged: bool) -> Parse[tuple[int, bool]]:
        """Return (end of the section, whether its closing tag is present). Raises NotACall.

        Without that tag it ends with the text, or where another section opens.
        """
        place = yield from self._text.space(at)
        if end and (yield from self._text.starts(place, (end,))) is not None:
            return place + len(end), True
        is_at_end = self._text.is_ended and place == len(self._text.text)
        if end and is_tagged and not is_at_end and (yield from self._text.starts(place, (start,))) is None:
            raise NotACall
        return at, False

    def _check_alone(self, calls: Sequence[FoundCall], at: int) -> Parse[None]:
        """Raise NotACall for calls without any tag, unless they are complete and end the answer."""
        place = yield from self._text.space(at)
        if place < len(self._text.text) or not all(call.name is not None and call.is_whole for call in calls):
            raise NotACall

    def _found(self, name: str, arguments: Sequence[Argument], raw: str, id: str | None = None) -> FoundCall:
        offered = self._tools.resolve(name)
        is_whole = self._tools.required_of(offered) <= {argument.key for argument in arguments}
        return FoundCall(offered, self._tools.written(offered, arguments), id, is_whole, raw)

    # --- calls that are objects

    def _objects(self, form: CallForm, at: int, ends: Sequence[str]) -> Parse[tuple[list[FoundCall], int]]:
        """Read consecutive objects and lists of objects, with or without a code fence."""
        text = self._text
        at, is_fenced = yield from self._fence(at)
        calls: list[FoundCall] = []
        while (opened := (yield from text.starts(at, ("{", "[")))) is not None:
            self.has_begun = True
            raw, end = yield from text.value(at, ends=(*ends, *((_FENCE_END,) if is_fenced else ())))
            for item in items_of(raw) if opened == "[" else (raw,):
                calls.append(self._object(form, item))
            self.read_until = at = yield from self._without_extra_braces(end)
            place = yield from text.space(at)
            separator = yield from text.starts(place, (",", ";"))
            place = yield from text.space(place + len(separator or ""))
            if (yield from text.starts(place, ("{", "["))) is None or (yield from self._opens(form, place)):
                break
            at = place
        if not calls:
            raise NotACall
        return calls, (yield from self._fence_end(at)) if is_fenced else at

    def _check_first_member(self, form: CallForm, at: int) -> Parse[None]:
        """Raise NotACall for an untagged object that cannot begin a call of an offered tool.

        Otherwise JSON in an answer would be held back until it is complete.
        """
        text = self._text
        at, _ = yield from self._fence(at)
        if (yield from text.starts(at, ("[",))) is not None:
            at = yield from text.space(at + 1)
        yield from text.expect(at, ("{",))
        yield from text.expect((yield from text.space(at + 1)), ('"', "'"))
        found = yield from text.match(at, _KEY, LONGEST_HEAD)
        key = found[2]
        if form.named_key:
            is_known = self._tools.resolve(key) is not None
        else:
            is_known = key in (*form.keys, *NAMES, *ARGUMENTS, *BESIDE)
        if not is_known:
            raise NotACall
        if key in (form.keys[0], *NAMES, "type") and (yield from text.starts(found.end(), ('"', "'"))) is not None:
            value = (yield from text.match(found.end(), _STRING, LONGEST_HEAD))[2]
            if not (value == "function" if key == "type" else self._tools.resolve(value)):
                raise NotACall

    def _object(self, form: CallForm, raw: str) -> FoundCall:
        name, arguments, id, has_arguments = call_in(raw, form.keys, is_named_by_key=form.named_key)
        found = self._found(name, arguments, raw, id)
        return found if has_arguments else replace(found, is_whole=False)

    def _fence(self, at: int) -> Parse[tuple[int, bool]]:
        """Return the start of the content and whether it is in a code fence."""
        at = yield from self._text.space(at)
        if (yield from self._text.starts(at, (_FENCE_END,))) is None:
            return at, False
        fence = yield from self._text.match(at, _FENCE, LONGEST_HEAD)
        return (yield from self._text.space(fence.end())), True

    def _fence_end(self, at: int) -> Parse[int]:
        place = yield from self._text.space(at)
        return place + len(_FENCE_END) if (yield from self._text.starts(place, (_FENCE_END,))) else at

    def _opens(self, form: CallForm, at: int) -> Parse[bool]:
        """Return whether another section begins."""
        start = form.start or self._form.start
        return bool(start) and (yield from self._text.starts(at, (start,))) is not None

    def _without_extra_braces(self, at: int) -> Parse[int]:
        """Skip a few unmatched closing braces."""
        for _ in range(_MOST_EXTRA_BRACES):
            place = yield from self._text.space(at)
            if (yield from self._text.starts(place, ("}",))) is None:
                break
            at = place + 1
        return at

    # --- calls as Python writes them

    def _python(self, at: int, ends: Sequence[str]) -> Parse[tuple[list[FoundCall], int]]:
        """Read one call or several, with or without list brackets."""
        text = self._text
        at = yield from text.space(at)
        is_list = (yield from text.starts(at, ("[",))) is not None
        at = yield from text.space(at + is_list)
        calls: list[FoundCall] = []
        while True:
            name = yield from text.word(at)
            start, at = at, at + len(name)
            yield from text.expect(at, ("(",))
            self.has_begun = True
            raw, at = yield from text.value(at, ends=ends)
            calls.append(self._found(name, python_arguments(raw), text.text[start:at]))
            self.read_until = at
            place = yield from text.space(at)
            mark = yield from text.starts(place, (",", ";", "]", *ends))
            if mark == "]" and is_list:
                at = place + 1
                place = yield from text.space(at)
                if ends or (yield from text.starts(place, ("[",))) is None:
                    return calls, at
                at = yield from text.space(place + 1)
                continue
            if mark in (",", ";"):
                place = yield from text.space(place + 1)
            elif is_list or mark is not None or (text.is_ended and place == len(text.text)):
                return calls, at
            at = place

    # --- calls with a name and arguments apart

    def _named(self, form: CallForm, at: int, ends: Sequence[str]) -> Parse[tuple[FoundCall, int]]:
        text, start = self._text, at
        at = yield from self._head(form, at)
        name = yield from text.word(at)
        at += len(name)
        id = name if form.id_is_name else None
        at, given = yield from self._mid(form, at)
        self.has_begun |= self._tools.resolve(name) is not None
        if form.style == "pairs":
            arguments, at = yield from self._pairs.pairs(form, name, at, ends)
        elif not self._tools.required_of(self._tools.resolve(name)) and (yield from self._is_over(form, at, ends)):
            arguments = []
        else:
            at, is_fenced = yield from self._fence(at)
            yield from text.expect(at, ("{",))
            raw, at = yield from text.value(at, form.quote, ends=(*ends, *((_FENCE_END,) if is_fenced else ())))
            at = (yield from self._fence_end(at)) if is_fenced else at
            arguments = bare_arguments(raw, form.quote) if form.style == "bare" else json_arguments(raw)
        at = yield from self._tail(form, at, ends)
        return self._found(name, arguments, text.text[start:at], id or given), at

    def _is_over(self, form: CallForm, at: int, ends: Sequence[str]) -> Parse[bool]:
        """Return whether the call ends where its arguments should begin."""
        place = yield from self._text.space(at)
        tail = form.tail.replace("```", "").split()[:1]
        if not tail and not ends:
            return self._text.is_finished and place == len(self._text.text)
        return (yield from self._text.starts(place, (*tail, *ends))) is not None

    def _head(self, form: CallForm, at: int) -> Parse[int]:
        at = yield from self._text.space(at)
        head = without_prefix(form.head)  # a model may omit it
        return (yield from self._text.skip(at, head)) if head else at

    def _mid(self, form: CallForm, at: int) -> Parse[tuple[int, str | None]]:
        """Return the end of the text between name and arguments, and the id within it."""
        before, place, after = form.mid.partition("{id}")
        id = None
        if place:
            at = yield from self._text.skip(at, before)
            id = yield from self._text.word(at)
            at, before = at + len(id), after
        lead, number, rest = before.partition("{index}")
        if number and '"' in lead:  # an attribute
            at = yield from self._text.skip(at, lead)
            at += len((yield from self._text.word(at)))
        before = rest if number else before
        before = before.replace("{nl}", "").replace("```json", "")
        return (yield from self._text.skip(at, before)), id

    def _tail(self, form: CallForm, at: int, ends: Sequence[str]) -> Parse[int]:
        """Return the end of the call; its closing text may be missing at the section's or the answer's end."""
        tail = form.tail.replace("```", "").strip()
        place = yield from self._text.space(at)
        if tail and (yield from self._text.starts(place, (tail.split()[0],))) is not None:
            return (yield from self._text.skip(place, tail))
        starts = () if tail or not self._form.start else (self._form.start,)
        if (yield from self._text.starts(place, (*ends, *starts))) is not None:
            return at
        if not tail and form.style != "pairs":
            return at
        if self._text.is_finished and place == len(self._text.text):
            return at
        raise NotACall
