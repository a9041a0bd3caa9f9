"""Encoding of output events as a message: the events of a stream, and the single object that is their fold.

Both contain the same blocks: reasoning, text and calls, in the order in which they arrive. Text that consists only of
white space before or between other blocks is not a block.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.dialects.anthropic_messages.errors import encode_error
from server.dialects.anthropic_messages.signatures import pack, sign
from server.dialects.fold import MOST_CHARS
from server.dialects.openai_written import dump, quote
from server.errors import APIError, InvalidRequest
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta, ToolCallDelta, Usage

PING = '{"type": "ping"}'
_PING_EVENT = f"event: ping\ndata: {PING}\n\n"
_STOP_EVENT = 'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True, slots=True)
class MessageHead:
    """Facts of a message known when it begins."""

    id: str
    model: str
    num_prompt_tokens: int
    num_cached_tokens: int
    is_cut_by_context: bool = False
    """The context, not a requested limit, bounds the answer's length."""
    hides_thinking: bool = False
    with_edits: bool = False
    """The request has edits of the context: the answer reports that none was applied."""


def encode_usage(head: MessageHead, usage: Usage | None) -> dict[str, Any]:
    """Return usage in Anthropic's three parts. Creation is 0: everything computed is cached, at no cost."""
    num_cached = head.num_cached_tokens if usage is None else usage.num_cached_tokens
    written: dict[str, Any] = {
        "input_tokens": head.num_prompt_tokens - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": 0 if usage is None else usage.num_output_tokens,
    }
    if usage is not None and usage.num_reasoning_tokens is not None:
        written["output_tokens_details"] = {"thinking_tokens": usage.num_reasoning_tokens}
    return written


def encode_stop(head: MessageHead, end: Finished | None) -> dict[str, Any]:
    """Return the reason why the message ended; null while it has not."""
    if end is None:
        return {"stop_reason": None, "stop_sequence": None}
    if end.stop is not None and end.reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": end.stop}
    is_full = end.reason == "length" and head.is_cut_by_context
    return {
        "stop_reason": "model_context_window_exceeded" if is_full else _REASONS[end.reason],
        "stop_sequence": None,
    }


def encode_error_event(error: APIError) -> bytes:
    """Return the error as the last event of a stream."""
    return f"event: error\ndata: {json.dumps(encode_error(error))}\n\n".encode()


def _edits(head: MessageHead) -> dict[str, Any]:
    return {"context_management": {"applied_edits": []}} if head.with_edits else {}


class MessageEncoder:
    """Encodes the batches of one stream, in order. Usage brings the end."""

    def __init__(self, head: MessageHead) -> None:
        self.head = head
        """Replaced once more is known; the end of the message uses it."""
        self._index = -1
        self._open: Literal["text", "thinking"] | None = None
        self._before = ""
        """The part of an open block's delta before its text."""
        self._blank = ""
        """White space with which a block of text would begin."""
        self._thought: list[str] = []
        self._end: Finished | None = None
        self._has_begun = False

    def encode(self, events: Sequence[OutputEvent]) -> bytes:
        written = "" if self._has_begun else self._begin()
        for event in events:
            if isinstance(event, TextDelta):
                written += self._text(event.text)
            elif isinstance(event, ReasoningDelta):
                written += self._think(event.text)
            elif isinstance(event, ToolCallDelta):
                written += self._call(event)
            elif isinstance(event, Finished):
                written += self._close()
                self._end = event
            else:
                written += self._finish(event)
        return written.encode()

    def _begin(self) -> str:
        self._has_begun = True
        head = self.head
        message = {
            **{"id": head.id, "type": "message", "role": "assistant", "model": head.model, "content": []},
            **encode_stop(head, None),
            "usage": encode_usage(head, None),
        }
        return f'event: message_start\ndata: {{"type":"message_start","message":{dump(message)}}}\n\n'

    def _text(self, text: str) -> str:
        if self._open == "text":
            return f"{self._before}{quote(text)}}}}}\n\n" if text else ""
        text = self._blank + text
        if not text or text.isspace():
            self._blank = text
            return ""
        self._blank = ""
        return self._opened("text", '{"type":"text","text":""}') + f"{self._before}{quote(text)}}}}}\n\n"

    def _think(self, text: str) -> str:
        if not text:
            return ""
        opened = ""
        if self._open != "thinking":
            opened = self._opened("thinking", '{"type":"thinking","thinking":"","signature":""}')
        self._thought.append(text)
        return opened if self.head.hides_thinking else f"{opened}{self._before}{quote(text)}}}}}\n\n"

    def _call(self, call: ToolCallDelta) -> str:
        opened = self._close() + self._start(
            f'{{"type":"tool_use","id":{quote(call.id)},"name":{quote(call.name)},"input":{{}}}}'
        )
        return f"{opened}{self._delta('input_json_delta', 'partial_json', call.arguments)}{self._stop()}"

    def _opened(self, kind: Literal["text", "thinking"], block: str) -> str:
        opened = self._close() + self._start(block)
        self._open = kind
        self._before = (
            f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._index},'
            f'"delta":{{"type":"{kind}_delta","{kind}":'
        )
        return opened

    def _start(self, block: str) -> str:
        self._index += 1
        ping = "" if self._index else _PING_EVENT
        return (
            'event: content_block_start\ndata: {"type":"content_block_start",'
            f'"index":{self._index},"content_block":{block}}}\n\n{ping}'
        )

    def _delta(self, kind: str, name: str, text: str) -> str:
        return (
            f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._index},'
            f'"delta":{{"type":"{kind}","{name}":{quote(text)}}}}}\n\n'
        )

    def _stop(self) -> str:
        return f'event: content_block_stop\ndata: {{"type":"content_block_stop","index":{self._index}}}\n\n'

    def _close(self) -> str:
        """Return the end of the open block, if there is one."""
        kind, self._open, self._blank = self._open, None, ""
        if kind is None:
            return ""
        signature = ""
        if kind == "thinking":
            signature = self._delta("signature_delta", "signature", signed(self._thought, self.head))
            self._thought = []
        return signature + self._stop()

    def _finish(self, usage: Usage) -> str:
        event = {
            "type": "message_delta",
            "delta": encode_stop(self.head, self._end),
            "usage": encode_usage(self.head, usage),
            **_edits(self.head),
        }
        return f"event: message_delta\ndata: {dump(event)}\n\n{_STOP_EVENT}"


def signed(thought: Iterable[str], head: MessageHead) -> str:
    """Return the signature of reasoning, which contains the reasoning if it is hidden."""
    return (pack if head.hides_thinking else sign)("".join(thought))


@dataclass(slots=True)
class _Block:
    kind: Literal["text", "thinking"]
    texts: list[str] = field(default_factory=list)


class MessageFold:
    """The answer of one job as one object."""

    def __init__(self, head: MessageHead) -> None:
        self._head = head
        self._blocks: list[_Block | ToolCallDelta] = []
        self._blank = ""
        self._end: Finished | None = None
        self._usage: Usage | None = None
        self._num_chars = 0

    def add(self, events: Iterable[OutputEvent]) -> None:
        """Add events. Raises InvalidRequest if the answer becomes too large."""
        for event in events:
            if isinstance(event, TextDelta):
                self._add_text(event.text)
            elif isinstance(event, ReasoningDelta):
                self._add("thinking", event.text)
            elif isinstance(event, ToolCallDelta):
                self._num_chars += len(event.arguments)
                self._blank = ""
                self._blocks.append(event)
            elif isinstance(event, Finished):
                self._end = event
            else:
                self._usage = event
        if self._num_chars > MOST_CHARS:
            raise InvalidRequest(
                f"The answer is larger than {MOST_CHARS >> 20} MB, the most that is sent in one piece. Ask for it "
                "with 'stream', or for fewer tokens.",
                param="stream",
                code="answer_too_large",
            )

    def pieces(self) -> Iterator[str]:
        """Yield the whole answer as JSON."""
        head = self._head
        yield f'{{"id":{quote(head.id)},"type":"message","role":"assistant","model":{quote(head.model)},"content":['
        for number, block in enumerate(self._blocks):
            if number:
                yield ","
            yield self._write(block)
        rest = {**encode_stop(head, self._end), "usage": encode_usage(head, self._usage), **_edits(head)}
        yield f"],{dump(rest)[1:]}"

    def _add_text(self, text: str) -> None:
        if self._is_in("text"):
            self._add("text", text)
            return
        text = self._blank + text
        self._blank = text if text.isspace() else ""
        if not self._blank:
            self._add("text", text)

    def _add(self, kind: Literal["text", "thinking"], text: str) -> None:
        if not text:
            return
        if not self._is_in(kind):
            self._blocks.append(_Block(kind))
            self._blank = ""
        self._num_chars += len(text)
        block = self._blocks[-1]
        assert isinstance(block, _Block)
        block.texts.append(text)

    def _is_in(self, kind: str) -> bool:
        last = self._blocks[-1] if self._blocks else None
        return isinstance(last, _Block) and last.kind == kind

    def _write(self, block: _Block | ToolCallDelta) -> str:
        if isinstance(block, ToolCallDelta):
            return f'{{"type":"tool_use","id":{quote(block.id)},"name":{quote(block.name)},"input":{block.arguments}}}'
        if block.kind == "text":
            return f'{{"type":"text","text":{quote("".join(block.texts))}}}'
        shown = "" if self._head.hides_thinking else "".join(block.texts)
        signature = signed(block.texts, self._head)
        return f'{{"type":"thinking","thinking":{quote(shown)},"signature":{quote(signature)}}}'
