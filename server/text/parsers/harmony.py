"""Incremental parser of gpt-oss's answers: a sequence of messages with headers.

`<|channel|>analysis<|message|>…<|end|>` is reasoning; `<|start|>assistant<|channel|>final<|message|>…<|return|>` is
content, as is a commentary without a recipient. A call is `<|channel|>commentary to=functions.NAME
<|constrain|>json<|message|>{…}` and `<|call|>`, held back until it is complete. Anything unparsable is content, tags
included.
"""

from __future__ import annotations

import re
from typing import Literal

from server.text.calls.arguments import json_arguments
from server.text.calls.form import default_id
from server.text.calls.growing import GrowingText, NotACall, Parse
from server.text.calls.offered import OfferedTools
from server.text.parsers.parts import Part, Start, ToolCall, Tools
from server.text.parsers.tags import find_tag

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ANALYSIS, FINAL = f"{CHANNEL}analysis{MESSAGE}", f"{CHANNEL}final{MESSAGE}"
COMMENTARY = f"{CHANNEL}commentary"
CLOSING = f"{END}{START}assistant{FINAL}"
"""Ends the reasoning and begins the answer."""
TAGS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)

_HEADS = (START, CHANNEL, CONSTRAIN, MESSAGE, " to=")
"""Beginnings of a header, or of its continuation after the prompt's `<|start|>assistant`."""
_ENDS = (END, CALL, RETURN)
_BETWEEN = "\n\n"
"""Separates two pieces of reasoning, or two messages."""
_HEADLESS = re.compile(r"(?:<\|start\|>\w*)?<\|channel\|>(analysis|commentary|final)?\s*")
_Kind = Literal["content", "reasoning", "call"]


class HarmonyParser:
    """The parser of one choice. `begins`: the state at the end of the prompt. Without `tools` a call is content."""

    markup = TAGS

    def __init__(self, tools: Tools = (), *, begins: Start = "before", only_one: bool = False) -> None:
        self._tools = OfferedTools(tools)
        self._only_one = only_one
        self._state: Literal["between", "header", "body"] = "between" if begins == "before" else "body"
        self._kind: _Kind = "content" if begins in ("before", "content") else "reasoning"
        self._held = ""
        self._header = ""  # of a call
        self._searched = 0  # in the held text: no tag of a header ends before it
        self._said: set[str] = {"reasoning"} if begins == "reasoning" else set()  # kinds that have had text
        self._is_new = False  # the next text belongs to another message than the last text of its kind
        self._ending: tuple[bool, bool] = (False, False)  # whether the output has ended, and was cut off
        self._begin_body()
        self.done = False

    def _begin_body(self) -> None:
        """Start parsing a call's arguments."""
        self._body = GrowingText()
        self._body.is_ended, self._body.is_cut = self._ending
        self._parse = _object_in(self._body)
        self._object = ""
        self._end_of_object: int | None = None
        self._is_broken = False

    def feed(self, text: str) -> list[Part]:
        """Return the parts settled so far. Text after the single allowed call is dropped."""
        self._held += text
        parts: list[Part] = []
        is_settled = False
        while not is_settled and not self.done:  # each step leaves the rest to the next
            before = (self._state, len(self._held))
            parts += self._step()
            is_settled = before == (self._state, len(self._held))
        return parts

    def flush(self, *, is_cut: bool = False) -> list[Part]:
        self._ending = self._body.is_ended, self._body.is_cut = True, is_cut
        parts = self.feed("")
        held, self._held = self._held, ""
        if self._state == "header":
            return [*parts, *self._headless(held)]
        text = self._set_apart(held) if held and self._state == "body" and self._kind != "call" else held
        return [*parts, Part(self._kind_of_text(), text, len(held))] if held or not parts else parts

    def _headless(self, held: str) -> list[Part]:
        """Emit a header without a message: possibly what the model wrote in place of one."""
        found = _HEADLESS.match(held)
        size = found.end() if found else 0
        kind: Literal["content", "reasoning"] = "reasoning" if found and found[1] == "analysis" else "content"
        text = "" if size == len(held) or held.startswith(START) else held[size:]
        return [Part("reasoning", "", len(held) - len(text)), *([Part(kind, text, len(text))] if text else [])]

    def _kind_of_text(self) -> Literal["content", "reasoning"]:
        return "reasoning" if self._state == "body" and self._kind == "reasoning" else "content"

    def _step(self) -> list[Part]:
        if self._state == "between":
            return self._look_for_header()
        if self._state == "header":
            return self._take_header()
        return self._hold_call() if self._kind == "call" else self._take_body()

    def _look_for_header(self) -> list[Part]:
        if self._held.startswith(_HEADS):
            self._state = "header"
        elif not any(head.startswith(self._held) for head in _HEADS):
            self._state, self._kind = "body", "content"
        return []

    def _take_header(self) -> list[Part]:
        place, tag = find_tag(self._held, (MESSAGE, *_ENDS), self._searched)
        if tag is None:
            self._searched = place
            return []
        size, self._searched = place + len(tag), 0
        header, self._held = self._held[:size], self._held[size:]
        self._state = "between"
        if tag in _ENDS:
            return [*self._headless(header[:place]), Part("reasoning", "", len(tag))]
        if tag == MESSAGE:
            self._is_new = True
            self._state, self._kind = "body", self._kind_of(header)
            if self._kind == "call":
                self._header = header
                self._begin_body()
                return []
        return [Part("reasoning", "", size)]

    def _kind_of(self, header: str) -> _Kind:
        if _recipient(header):
            return "call"
        return "reasoning" if header.partition(CHANNEL)[2].startswith("analysis") else "content"

    def _take_body(self) -> list[Part]:
        place, tag = find_tag(self._held, (START, CHANNEL, *_ENDS))
        text, self._held = self._held[:place], self._held[place:]
        parts = [Part(self._kind, self._set_apart(text), len(text))] if text else []
        if tag is not None:
            self._state = "between"
            if tag in _ENDS:
                self._held = self._held[len(tag) :]
                parts.append(Part("reasoning", "", len(tag)))
        return parts

    def _set_apart(self, text: str) -> str:
        """Put an empty line before the first text of another piece of reasoning."""
        is_next = self._is_new and self._kind == "reasoning" and self._kind in self._said
        self._is_new = False
        self._said.add(self._kind)
        return _BETWEEN + text if is_next else text

    def _hold_call(self) -> list[Part]:
        """Hold a call until a tag ends its complete arguments; a tag within a text of theirs does not."""
        self._body.text = self._held
        if self._end_of_object is None and not self._is_broken:
            self._read_object()
        if self._end_of_object is None and not self._is_broken:
            return []
        start = max(self._end_of_object or 0, self._searched)
        place, tag = find_tag(self._held, (START, CHANNEL, *_ENDS), start)
        if tag is None and not self._body.is_ended:
            self._searched = place
            return []
        self._searched = 0
        return [self._call(place, tag if tag in _ENDS else "")]

    def _read_object(self) -> None:
        try:
            next(self._parse)
        except StopIteration as done:
            self._object, self._end_of_object = done.value
        except NotACall:
            self._is_broken = True

    def _call(self, place: int, end: str) -> Part:
        name, arguments = self._tools.resolve(_recipient(self._header)), []
        is_empty = not self._held[:place].strip() and not self._tools.required_of(name)
        try:
            arguments = [] if is_empty else json_arguments(self._object)
        except ValueError:
            name = None
        if self._held[self._end_of_object or 0 : place].strip().strip("}"):  # an extra closing brace is tolerated
            name = None
        raw = self._header + self._held[: place + len(end)]
        self._held = self._held[place + len(end) :]
        self._state = "between"
        if name is None:
            return Part("content", raw, len(raw))
        self.done = self._only_one
        return Part("call", "", len(raw), (ToolCall(default_id(), name, self._tools.written(name, arguments)),))


def _object_in(text: GrowingText) -> Parse[tuple[str, int]]:
    """Return (text, end) of the object that begins a call's body. Raises NotACall."""
    at = yield from text.space(0)
    if (yield from text.starts(at, ("{",))) is None:
        raise NotACall
    return (yield from text.value(at, ends=(START, CHANNEL, *_ENDS)))


def _recipient(header: str) -> str:
    found = re.search(r"(?:^|[\s>])to=([^\s<]+)", header)
    return found[1] if found else ""
