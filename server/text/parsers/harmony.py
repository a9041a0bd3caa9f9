"""gpt-oss's answers: messages with headers, one after another, in a text that arrives in pieces.

`<|channel|>analysis<|message|>…<|end|>` is a thought; `<|start|>assistant<|channel|>final<|message|>…<|return|>` is
content, and so is a commentary to nobody; `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}` and
`<|call|>` are a call, held back until it is whole. What cannot be read is content, tags and all. Knows characters only.
"""

from __future__ import annotations

import json
import re
from typing import Literal
from uuid import uuid4

from server.json_text import read_json
from server.text.parsers.parts import Part, Start, ToolCall, Tools
from server.text.parsers.tags import find_tag, without_cut_tag

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ANALYSIS, FINAL = f"{CHANNEL}analysis{MESSAGE}", f"{CHANNEL}final{MESSAGE}"
COMMENTARY = f"{CHANNEL}commentary"
CLOSING = f"{END}{START}assistant{FINAL}"
"""Ends a thought and begins the answer."""
TAGS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)

_HEADS = (START, CHANNEL, CONSTRAIN, MESSAGE, " to=")
"""With what a header begins, or goes on behind the `<|start|>assistant` of the prompt."""
_ENDS = (END, CALL, RETURN)
_Kind = Literal["content", "reasoning", "call"]


class HarmonyParser:
    """The parser of one choice. `begins`: where the prompt has left off. Without `tools` a call is content."""

    markup = TAGS

    def __init__(self, tools: Tools = (), *, begins: Start = "before", only_one: bool = False) -> None:
        self._tools = tools
        self._only_one = only_one
        self._state: Literal["between", "header", "body"] = "between" if begins == "before" else "body"
        self._kind: _Kind = "content" if begins in ("before", "content") else "reasoning"
        self._held = ""
        self._header = ""  # of a call
        self._num_searched = 0  # characters of a call's body that begin no tag
        self.done = False

    def feed(self, text: str) -> list[Part]:
        """What is settled by now. Text after the one call that was wanted is nothing."""
        self._held += text
        parts: list[Part] = []
        is_settled = False
        while not is_settled and not self.done:  # what one step leaves is for the next
            before = (self._state, len(self._held))
            parts += self._step()
            is_settled = before == (self._state, len(self._held))
        return parts

    def flush(self, cut: str = "") -> list[Part]:
        held, self._held = self._held, ""
        if self._state == "body" and self._kind == "call":
            return [self._call(held, "")]
        if self._state == "header" or (self._state == "between" and any(map(held.startswith, _HEADS))):
            return [Part("reasoning", "", len(held))]
        text = without_cut_tag(held, cut, TAGS)
        tag = len(held) - len(text)
        kind = self._kind if self._state == "body" else "content"
        return [Part(kind, text, len(text)), *([Part("reasoning", "", tag)] if tag else [])]

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
        place, tag = find_tag(self._held, (MESSAGE, *_ENDS))
        if tag is None:
            return []
        size = place + len(tag)
        header, self._held = self._held[:size], self._held[size:]
        self._state = "between"
        if tag == MESSAGE:
            self._state, self._kind = "body", self._kind_of(header)
            if self._kind == "call":
                self._header = header
                return []
        return [Part("reasoning", "", size)]

    def _kind_of(self, header: str) -> _Kind:
        if _recipient(header):
            return "call"
        return "reasoning" if header.partition(CHANNEL)[2].startswith("analysis") else "content"

    def _take_body(self) -> list[Part]:
        place, tag = find_tag(self._held, (START, CHANNEL, *_ENDS))
        text, self._held = self._held[:place], self._held[place:]
        parts = [Part(self._kind, text, len(text))] if text else []
        if tag is not None:
            self._state = "between"
            if tag in _ENDS:
                self._held = self._held[len(tag) :]
                parts.append(Part("reasoning", "", len(tag)))
        return parts

    def _hold_call(self) -> list[Part]:
        place, tag = find_tag(self._held, (START, CHANNEL, *_ENDS), self._num_searched)
        if tag is None:
            self._num_searched = place
            return []
        end = tag if tag in _ENDS else ""
        body, self._held = self._held[:place], self._held[place + len(end) :]
        self._state = "between"
        return [self._call(body, end)]

    def _call(self, body: str, end: str) -> Part:
        raw, self._state, self._num_searched = self._header + body + end, "between", 0
        name = _recipient(self._header).removeprefix("functions.")
        arguments = _arguments(body)
        if not self._tools or not name or arguments is None:
            return Part("content", raw, len(raw))
        self.done = self._only_one
        return Part("call", "", len(raw), (ToolCall(f"call_{uuid4().hex[:24]}", name, arguments),))


def _recipient(header: str) -> str:
    found = re.search(r"(?:^|[\s>])to=([^\s<]+)", header)
    return found[1] if found else ""


def _arguments(body: str) -> str | None:
    """The JSON of an object; None where `body` is not whole, or is none."""
    try:
        parsed = read_json(body)
        if not isinstance(parsed, dict):
            return None
        written = json.dumps(parsed, ensure_ascii=False, allow_nan=False)
        written.encode()
    except ValueError:
        return None
    return written
