"""Encoding of output events as OpenAI's responses: the events of a stream, and the object that the last one holds.

The same state writes both; without a stream it writes no events. Every event has a sequence number.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from server.dialects.fold import MOST_CHARS
from server.dialects.openai_responses.sealed import seal
from server.dialects.openai_responses.tools import Toolbox
from server.dialects.openai_written import dump, finite, quote
from server.errors import APIError, InvalidRequest
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta, TokenText, ToolCallDelta, Usage

_FAILURES = {429: "rate_limit_exceeded"}
"""Codes of a failed response by status; there are fewer than codes of errors."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Facts of an answer known before it begins. `key`: letters contained in its ids."""

    key: str
    box: Toolbox
    echo: str
    """The fields of the request that the response repeats, as JSON without brackets."""
    shows_thoughts: bool = True
    as_summary: bool = False
    """Reasoning is sent as the item's summary, not as its content."""
    seals_thoughts: bool = False
    has_logprobs: bool = False

    @property
    def id(self) -> str:
        return f"resp_{self.key}"


@dataclass(slots=True)
class _Open:
    """The item being written: a message or reasoning."""

    kind: str
    id: str
    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)
    short_logprobs: list[str] = field(default_factory=list)
    """The same in the shorter form of events."""
    delta_head: str = ""
    """The part of a delta event before its text."""


class Output:
    """One answer. `on_end` receives the complete response as JSON."""

    def __init__(
        self,
        form: AnswerForm,
        model: str,
        created: int,
        *,
        streams: bool,
        on_end: Callable[[str], None] | None = None,
    ) -> None:
        self.prepare: Callable[[Sequence[OutputEvent]], Awaitable[None]] | None = None
        self._form = form
        self._streams = streams
        self._on_end = on_end
        self._head = f'{{"id":{quote(form.id)},"object":"response","created_at":{created},'
        self._tail = f'"model":{quote(model)},{form.echo}'
        self._number = 0
        self._items: list[str] = []
        self._open: _Open | None = None
        self._pending: list[TokenText] = []
        self._reason = "stop"
        self._num_chars = 0
        self.response = ""
        """The complete response as JSON, once it has ended."""

    # --- interface to streams and whole answers

    def encode(self, events: Sequence[OutputEvent]) -> bytes:
        """Return the events of a batch as server-sent events."""
        written = "" if self._number else self._begin()
        for event in events:
            written += self._take(event)
        return written.encode()

    def add(self, events: Sequence[OutputEvent]) -> None:
        """Add events without a stream. Raises InvalidRequest if the answer becomes too large."""
        for event in events:
            self._take(event)
        if self._num_chars > MOST_CHARS:
            raise InvalidRequest(
                f"The answer is larger than {MOST_CHARS >> 20} MB, the most that is sent in one piece. Ask for it "
                "with 'stream', or for fewer tokens or log-probabilities.",
                param="stream",
                code="answer_too_large",
            )

    def pieces(self) -> Iterator[str]:
        yield self.response

    def fail(self, error: APIError) -> bytes:
        """Return the last events of a stream that fails: the error, and the response so far."""
        written = "" if self._number else self._begin()
        told = f'"code":{dump(error.code or error.type)},"message":{dump(error.message)},"param":{dump(error.param)}'
        written += self._event("error", told)
        if self._open is not None:
            self._items.append(self._item("incomplete"))
            self._open = None
        known = "server_error" if error.status >= 500 else _FAILURES.get(error.status, "invalid_prompt")
        failure = f'{{"code":"{known}","message":{dump(error.message)}}}'
        response = self._respond("failed", error=failure)
        # half of a surrogate pair quoted by an error cannot be encoded
        return (written + self._event("response.failed", f'"response":{response}')).encode("utf-8", "replace")

    # --- events

    def _event(self, kind: str, members: str) -> str:
        if not self._streams:
            return ""
        number, self._number = self._number, self._number + 1
        return f'event: {kind}\ndata: {{"type":"{kind}",{members},"sequence_number":{number}}}\n\n'

    def _begin(self) -> str:
        response = self._respond("in_progress")
        return self._event("response.created", f'"response":{response}') + self._event(
            "response.in_progress", f'"response":{response}'
        )

    def _take(self, event: OutputEvent) -> str:
        if isinstance(event, TextDelta):
            return self._add_text(event)
        if isinstance(event, ReasoningDelta):
            return self._add_thought(event)
        if isinstance(event, ToolCallDelta):
            return self._close() + self._call(event)
        if isinstance(event, Finished):
            self._reason = event.reason
            return ""
        return self._end(event)

    def _add_text(self, event: TextDelta) -> str:
        if not event.text:  # tokens without text yet, or without any
            self._pending += event.tokens
            return ""
        written = ""
        if self._open is None or self._open.kind != "message":
            written = self._close() + self._open_message()
        message = self._open
        assert message is not None
        message.texts.append(event.text)
        self._num_chars += len(event.text)
        logprobs = "[]"
        if event.tokens or self._pending:
            tokens = [*self._pending, *event.tokens]
            self._pending = []
            message.logprobs += (encoded := [_logprob(token) for token in tokens])
            self._num_chars += sum(map(len, encoded))
            message.short_logprobs += (short := [_short_logprob(token) for token in tokens])
            logprobs = f"[{','.join(short)}]"
        if not self._streams:
            return ""
        number, self._number = self._number, self._number + 1
        head = message.delta_head
        return f'{written}{head}{quote(event.text)},"logprobs":{logprobs},"sequence_number":{number}}}\n\n'

    def _add_thought(self, event: ReasoningDelta) -> str:
        if not event.text or not self._form.shows_thoughts:
            return ""
        written = ""
        if self._open is None or self._open.kind != "reasoning":
            written = self._close() + self._open_thought()
        thought = self._open
        assert thought is not None
        thought.texts.append(event.text)
        self._num_chars += len(event.text)
        if not self._streams:
            return ""
        number, self._number = self._number, self._number + 1
        return f'{written}{thought.delta_head}{quote(event.text)},"sequence_number":{number}}}\n\n'

    # --- items

    def _open_item(self, kind: str, prefix: str) -> _Open:
        index = len(self._items)
        self._open = _Open(kind, f"{prefix}_{self._form.key}_{index}", index)
        return self._open

    def _open_message(self) -> str:
        item = self._open_item("message", "msg")
        at = self._at(item)
        part = '{"type":"output_text","annotations":[],"logprobs":[],"text":""}'
        item.delta_head = _delta_head("response.output_text.delta", f'{at},"content_index":0')
        begun = f'{{"id":"{item.id}","type":"message","status":"in_progress","content":[],"role":"assistant"}}'
        return self._added(item, begun) + self._event(
            "response.content_part.added", f'{at},"content_index":0,"part":{part}'
        )

    def _open_thought(self) -> str:
        item = self._open_item("reasoning", "rs")
        at = self._at(item)
        is_summary = self._form.as_summary
        content = "" if is_summary else ',"content":[]'
        begun = f'{{"id":"{item.id}","type":"reasoning","summary":[]{content},"status":"in_progress"}}'
        added = self._added(item, begun)
        if is_summary:
            item.delta_head = _delta_head("response.reasoning_summary_text.delta", f'{at},"summary_index":0')
            part = '{"type":"summary_text","text":""}'
            return added + self._event("response.reasoning_summary_part.added", f'{at},"summary_index":0,"part":{part}')
        item.delta_head = _delta_head("response.reasoning_text.delta", f'{at},"content_index":0')
        part = '{"type":"reasoning_text","text":""}'
        return added + self._event("response.content_part.added", f'{at},"content_index":0,"part":{part}')

    def _added(self, item: _Open, begun: str) -> str:
        return self._event("response.output_item.added", f'"output_index":{item.index},"item":{begun}')

    def _at(self, item: _Open) -> str:
        return f'"item_id":"{item.id}","output_index":{item.index}'

    def _close(self, status: str = "completed") -> str:
        """Return the events that end the item being written, if there is one."""
        item = self._open
        if item is None:
            return ""
        self._items.append(self._item(status))
        self._open = None
        if not self._streams:
            return ""
        at, text = self._at(item), quote("".join(item.texts))
        if item.kind == "message":
            logprobs = f"[{','.join(item.logprobs)}]"
            done = f'{at},"content_index":0,"text":{text},"logprobs":[{",".join(item.short_logprobs)}]'
            part = f'{at},"content_index":0,"part":{_output_text(text, logprobs)}'
            written = self._event("response.output_text.done", done) + self._event("response.content_part.done", part)
        elif self._form.as_summary:
            part = f'{at},"summary_index":0,"part":{{"type":"summary_text","text":{text}}}'
            written = self._event("response.reasoning_summary_text.done", f'{at},"summary_index":0,"text":{text}')
            written += self._event("response.reasoning_summary_part.done", part)
        else:
            part = f'{at},"content_index":0,"part":{{"type":"reasoning_text","text":{text}}}'
            written = self._event("response.reasoning_text.done", f'{at},"content_index":0,"text":{text}')
            written += self._event("response.content_part.done", part)
        return written + self._done(item.index)

    def _done(self, index: int) -> str:
        return self._event("response.output_item.done", f'"output_index":{index},"item":{self._items[index]}')

    def _item(self, status: str) -> str:
        """Return the item being written, as JSON."""
        item = self._open
        assert item is not None
        text = "".join(item.texts)
        if item.kind == "message":
            content = _output_text(quote(text), f"[{','.join(item.logprobs)}]")
            return f'{{"id":"{item.id}","type":"message","status":"{status}","content":[{content}],"role":"assistant"}}'
        if self._form.as_summary:
            said = f'"summary":[{{"type":"summary_text","text":{quote(text)}}}]'
        else:
            said = f'"summary":[],"content":[{{"type":"reasoning_text","text":{quote(text)}}}]'
        sealed = f',"encrypted_content":{dump(seal(text))}' if self._form.seals_thoughts else ""
        return f'{{"id":"{item.id}","type":"reasoning",{said}{sealed},"status":"{status}"}}'

    def _call(self, call: ToolCallDelta) -> str:
        index, tool = len(self._items), self._form.box.find(call.name)
        is_custom = tool is not None and tool.kind == "custom"
        said = call.arguments if tool is None else tool.read_call(call.arguments)
        self._num_chars += len(said)
        name = call.name if tool is None else tool.name
        namespace = "" if tool is None or tool.namespace is None else f',"namespace":{quote(tool.namespace)}'
        kind, field_name, prefix, events = (
            ("custom_tool_call", "input", "ctc", "response.custom_tool_call_input")
            if is_custom
            else ("function_call", "arguments", "fc", "response.function_call_arguments")
        )
        id = f"{prefix}_{self._form.key}_{index}"
        known = f'"call_id":{quote(call.id)},"name":{quote(name)}{namespace}'

        def item(text: str, status: str) -> str:
            # @ai-sdk/openai requires the status of a custom tool's call, too, which is not in OpenAI's reference
            return f'{{"id":"{id}","type":"{kind}","status":"{status}",{known},"{field_name}":{quote(text)}}}'

        self._items.append(item(said, "completed"))
        if not self._streams:
            return ""
        at = f'"item_id":"{id}","output_index":{index}'
        # earlier versions of OpenAI's reference include the name
        named = "" if is_custom else f',"name":{quote(name)}'
        return (
            self._event("response.output_item.added", f'"output_index":{index},"item":{item("", "in_progress")}')
            + self._event(f"{events}.delta", f'{at},"delta":{quote(said)}')
            + self._event(f"{events}.done", f'{at}{named},"{field_name}":{quote(said)}')
            + self._done(index)
        )

    # --- the end

    def _end(self, usage: Usage) -> str:
        status = "incomplete" if self._reason == "length" else "completed"
        written = ""
        has_words = self._open is not None and self._open.kind == "message"
        if status == "completed" and not has_words and all(map(_is_thought, self._items)):
            written = self._close() + self._open_message()  # an answer without text still has a message
        written += self._close(status)
        self.response = self._respond(status, usage=_usage(usage))
        if self._on_end is not None:
            self._on_end(self.response)
        return written + self._event(f"response.{status}", f'"response":{self.response}')

    def _respond(self, status: str, *, error: str = "null", usage: str = "null") -> str:
        details = '{"reason":"max_output_tokens"}' if status == "incomplete" else "null"
        completed = int(time.time()) if status == "completed" else "null"
        return (
            f'{self._head}"status":"{status}","completed_at":{completed},"error":{error},'
            f'"incomplete_details":{details},{self._tail},"output":[{",".join(self._items)}],"usage":{usage}}}'
        )


def _is_thought(item: str) -> bool:
    return item.startswith('{"id":"rs_')


def _delta_head(kind: str, at: str) -> str:
    return f'event: {kind}\ndata: {{"type":"{kind}",{at},"delta":'


def _output_text(text: str, logprobs: str) -> str:
    return f'{{"type":"output_text","annotations":[],"logprobs":{logprobs},"text":{text}}}'


def _usage(usage: Usage) -> str:
    cached = {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0}
    if usage.num_truncated_tokens:
        cached["truncated_tokens"] = usage.num_truncated_tokens
    return dump(
        {
            "input_tokens": usage.num_prompt_tokens,
            "input_tokens_details": cached,
            "output_tokens": usage.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens or 0},
            "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        }
    )


def _logprob(token: TokenText) -> str:
    return dump({**_token(token), "top_logprobs": [_token(one) for one in token.top]})


def _token(token: TokenText) -> dict[str, object]:
    return {"token": token.text, "bytes": list(token.raw), "logprob": finite(token.logprob)}


def _short_logprob(token: TokenText) -> str:
    """Encode a token without bytes, as in events of a stream."""
    top = [{"token": one.text, "logprob": finite(one.logprob)} for one in token.top]
    return dump({"token": token.text, "logprob": finite(token.logprob), "top_logprobs": top})
