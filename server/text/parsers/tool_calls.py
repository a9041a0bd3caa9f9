"""Calls of tools apart from content, in a text that arrives in pieces.

What stands between the tags is held back until the call is complete. What cannot be read as a call is content, tags
and all: nothing is lost. White space around a call is not content where no content stands before it. Knows JSON and
tags; how a model writes a call is the format's `parse_tool_call`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from server.json_text import read_json
from server.text.parsers.parts import ChatFormat, Part, ToolCall, Tools
from server.text.parsers.schemas import fit, required_of
from server.text.parsers.tags import find_tag, without_cut_tag


class ToolCallSplitter:
    """Tells the calls of one output from its content. `only_one`: the first call is the last thing of interest."""

    def __init__(self, format: ChatFormat, tools: Tools, *, only_one: bool = False) -> None:
        self._format = format
        self._start = format.tool_start or ""
        self._tools = tools
        self._only_one = only_one
        self._held = ""
        self._call: str | None = None  # from the white space before the start tag on
        self._body_at = 0  # in _call, where its start tag ends
        self._has_content = False
        self._is_after_call = False
        self.done = False

    def feed(self, text: str) -> list[Part]:
        """What is settled by now. Text after the one call that was wanted is nothing."""
        parts: list[Part] = []
        while text and not self.done:
            text = self._take_content(text, parts) if self._call is None else self._take_call(text, parts)
        return parts

    def flush(self, cut: str = "") -> list[Part]:
        """The rest, at least one part. `cut` followed in the text, and was cut off."""
        if self._call is not None:
            return self._end_in_call()
        held, self._held = self._held, ""
        text = without_cut_tag(held, cut, (self._start,))
        tag = len(held) - len(text)
        is_dropped = self._is_after_call and (text.isspace() or not self._has_content)
        space = len(text) - len(text.lstrip()) if is_dropped else 0
        before = [Part("call", "", space)] if self._is_after_call else []
        return [*before, Part("content", text[space:], len(text) - space), Part("call", "", tag)]

    def _take_content(self, text: str, parts: list[Part]) -> str:
        """Give out content up to where a call may begin; the text that is left for the next step."""
        seen = self._held + text
        place, tag = find_tag(seen, (self._start,))
        content = seen[:place].rstrip()
        if self._is_after_call and content and not self._has_content:
            space = len(content) - len(content.lstrip())
            parts.append(Part("call", "", space))
            seen, content = seen[space:], content[space:]
            place -= space
        if content:
            parts.append(Part("content", content, len(content)))
            self._has_content, self._is_after_call = True, False
        if tag is None:
            self._held = seen[len(content) :]
            return ""
        self._held = ""
        self._call = seen[len(content) : place + len(tag)]
        self._body_at = len(self._call)
        return seen[place + len(tag) :]

    def _take_call(self, text: str, parts: list[Part]) -> str:
        """Add to the call; the text after it, once it is complete."""
        assert self._call is not None
        end = self._format.tool_end
        before = len(self._call)
        self._call += text
        if not end:
            return ""
        place, tag = find_tag(self._call, (end,), max(self._body_at, before - len(end) + 1))
        if tag is None:
            return ""
        whole, rest = self._call[: place + len(end)], self._call[place + len(end) :]
        parts.append(self._part_of(whole, self._read(whole[self._body_at : place])))
        return rest

    def _end_in_call(self) -> list[Part]:
        """The output ends within a call: it counts if it is whole but for its end tag."""
        assert self._call is not None
        body = self._call[self._body_at :]
        end = self._format.tool_end
        if not end:
            return [self._part_of(self._call, self._read(body))]
        calls = self._read(body) or self._read(body[: find_tag(body, (end,))[0]])
        is_whole = all(self._is_complete(call) for call in calls)
        return [self._part_of(self._call, calls if is_whole else ())]

    def _part_of(self, raw: str, calls: tuple[ToolCall, ...]) -> Part:
        self._call = None
        if not calls:
            self._has_content, self._is_after_call = True, False
            return Part("content", raw, len(raw))
        self._is_after_call = True
        self.done = self._only_one
        return Part("call", "", len(raw), calls[:1] if self._only_one else calls)

    def _read(self, body: str) -> tuple[ToolCall, ...]:
        """The calls of `body`; none where it cannot be read, or not all of it."""
        assert self._format.parse_tool_call is not None
        try:
            parsed = self._format.parse_tool_call(body, self._tools)
            return tuple(map(self._to_call, parsed if isinstance(parsed, list) else [parsed]))
        except Exception:  # noqa: BLE001 - parsers raise anything at what they cannot read
            return ()

    def _to_call(self, parsed: Any) -> ToolCall:
        """Raises ValueError, TypeError and others for what is no call."""
        name, arguments = parsed["name"], parsed.get("arguments")
        if isinstance(arguments, str):
            arguments = read_json(arguments or "{}")
        elif arguments is None:
            arguments = {}
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            raise ValueError("a call is a name and an object")
        schema, syntax = self._schema_of(name), self._format.syntax
        if arguments.keys() == {"raw"} and schema is None:
            raise ValueError("so a parser names what it could not read")
        if schema is not None and syntax is not None and syntax.pair is not None:
            arguments = fit(arguments, schema)
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + written).encode()  # half a surrogate pair cannot be sent
        given = parsed.get("id")
        return ToolCall(given if isinstance(given, str) and given else self._new_id(), name, written)

    def _new_id(self) -> str:
        return self._format.new_id() if self._format.new_id else f"call_{uuid4().hex[:24]}"

    def _is_complete(self, call: ToolCall) -> bool:
        """A tool that was offered, with all that it requires."""
        schema = self._schema_of(call.name)
        return schema is not None and json.loads(call.arguments).keys() >= required_of(schema)

    def _schema_of(self, name: str) -> Mapping[str, Any] | None:
        for tool in self._tools:
            if tool["function"]["name"] == name:
                return tool["function"].get("parameters") or {}
        return None
