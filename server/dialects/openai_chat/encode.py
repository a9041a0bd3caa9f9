"""Output events as OpenAI's chat completions: chunks of a stream, and the one object that is their fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.dialects.openai_answers import ChunkEncoder
from server.dialects.openai_fold import ChoiceEvent, Fold, listed
from server.dialects.openai_written import Head, dump, finite, quote
from server.text.events import Finished, ReasoningDelta, TextDelta, TokenText, ToolCallDelta


def build_encoder(head: Head, include_usage: bool) -> ChunkEncoder:
    return ChunkEncoder(head, "chat.completion.chunk", include_usage, _ChoiceEncoder().encode)


def build_fold(head: Head) -> Fold:
    """The JSON answer."""
    return Fold(head, "chat.completion", lambda index: _FoldedMessage())


@dataclass(slots=True)
class _FoldedMessage:
    """One choice of the JSON answer."""

    text: list[str] = field(default_factory=list)
    has_content: bool = False
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Log-probabilities, each as JSON."""
    reason: str | None = None

    def add(self, event: ChoiceEvent) -> int:
        if isinstance(event, Finished):
            self.reason = event.reason
            return 0
        if isinstance(event, ToolCallDelta):
            self.calls.append(event)
            return len(event.arguments)
        if isinstance(event, ReasoningDelta):
            self.reasoning.append(event.text)
            return len(event.text)
        self.has_content = True
        self.text.append(event.text)
        written = [dump(encode_logprob(token)) for token in event.tokens]
        self.tokens += written
        return len(event.text) + sum(map(len, written))

    def pieces(self, number: int) -> Iterator[str]:
        yield f'{{"index":{number},"message":{dump(self._message())},"logprobs":'
        if self.tokens:
            yield '{"content":'
            yield from listed(self.tokens)
            yield ',"refusal":null}'
        else:
            yield "null"
        yield f',"finish_reason":{dump(self.reason)}}}'

    def _message(self) -> dict[str, Any]:
        content = "".join(self.text) if self.has_content or not self.calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content}
        reasoning = "".join(self.reasoning)
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = [_call(call) for call in self.calls]
        return {**message, "refusal": None}


class _ChoiceEncoder:
    """The choices of a stream's chunks; the first of each says whose turn it is.

    What a client adds up is what `fold` gives: content is null until there is some, or until nothing else came of it.
    """

    def __init__(self) -> None:
        self._has_content: dict[int, bool] = {}

    def encode(self, event: ChoiceEvent) -> Sequence[str]:
        index = event.index
        is_content = isinstance(event, TextDelta | Finished)
        written = []
        if index not in self._has_content:
            self._has_content[index] = is_content
            content = '""' if is_content else "null"
            written.append(_choice(index, f'{{"role":"assistant","content":{content}}}', "null", "null"))
        if isinstance(event, Finished) and not self._has_content[index]:
            written.append(_choice(index, '{"content":""}', "null", "null"))
        if isinstance(event, ReasoningDelta):
            return (*written, _encode(event)) if event.text else written
        self._has_content[index] = True
        return (*written, _encode(event))


def _encode(event: ChoiceEvent) -> str:
    if isinstance(event, Finished):
        return _choice(event.index, "{}", "null", f'"{event.reason}"')
    if isinstance(event, ReasoningDelta):
        return _choice(event.index, f'{{"reasoning_content":{quote(event.text)}}}', "null", "null")
    if isinstance(event, ToolCallDelta):
        call = dump({"index": event.call_index, **_call(event)})
        return _choice(event.index, f'{{"tool_calls":[{call}]}}', "null", "null")
    logprobs = dump(encode_logprobs(event.tokens)) if event.tokens else "null"
    return _choice(event.index, f'{{"content":{quote(event.text)}}}', logprobs, "null")


def _choice(index: int, delta: str, logprobs: str, reason: str) -> str:
    return f'"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}'


def _call(call: ToolCallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def encode_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    return {"content": [encode_logprob(token) for token in tokens], "refusal": None}


def encode_logprob(token: TokenText) -> dict[str, Any]:
    return {**_token(token), "top_logprobs": [_token(one) for one in token.top]}


def _token(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.raw)}
