"""Encode output events as OpenAI chat completions: chunks of a stream, or the one object that folds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.dialects.answers import ChunkEncoder
from server.dialects.fold import ChoiceEvent, Fold, listed
from server.dialects.openai_written import Head, dump, finite, quote
from server.text.events import Finished, ReasoningDelta, TextDelta, TokenText, ToolCallDelta


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Form of an answer. `reasoning_names`: the fields that carry reasoning; empty leaves it out.

    `is_old`: a call is written as `function_call`, the form that predates `tools`.
    """

    reasoning_names: tuple[str, ...] = ("reasoning_content",)
    is_old: bool = False


USUAL_FORM = AnswerForm()


def build_encoder(head: Head, include_usage: bool, form: AnswerForm = USUAL_FORM) -> ChunkEncoder:
    return ChunkEncoder(head, "chat.completion.chunk", include_usage, _ChoiceEncoder(form).encode)


def build_fold(head: Head, form: AnswerForm = USUAL_FORM) -> Fold:
    """Return the fold that builds the JSON answer."""
    return Fold(head, "chat.completion", lambda index: _FoldedMessage(form))


@dataclass(slots=True)
class _FoldedMessage:
    """One choice of the JSON answer."""

    form: AnswerForm
    text: list[str] = field(default_factory=list)
    has_content: bool = False
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Log-probabilities, each as JSON."""
    reason: str | None = None

    def add(self, event: ChoiceEvent) -> int:
        if isinstance(event, Finished):
            self.reason = _reason(event, self.form)
            return 0
        if isinstance(event, ToolCallDelta):
            self.calls.append(event)
            return len(event.arguments)
        if isinstance(event, ReasoningDelta):
            self.reasoning.append(event.text if self.form.reasoning_names else "")
            return len(event.text) * len(self.form.reasoning_names)
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
            message |= dict.fromkeys(self.form.reasoning_names, reasoning)
        if self.calls and self.form.is_old:
            message["function_call"] = _function(self.calls[0])
        elif self.calls:
            message["tool_calls"] = [_call(call) for call in self.calls]
        return {**message, "refusal": None}


class _ChoiceEncoder:
    """Encoder of the choices of a stream's chunks; the first chunk of each choice carries the role.

    The deltas add up to the result of the fold: content is null until there is some, or until the choice ends without
    reasoning or calls.
    """

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
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
            return (*written, _encode(event, self._form)) if event.text and self._form.reasoning_names else written
        self._has_content[index] = True
        return (*written, _encode(event, self._form))


def _encode(event: ChoiceEvent, form: AnswerForm) -> str:
    if isinstance(event, Finished):
        return _choice(event.index, "{}", "null", f'"{_reason(event, form)}"')
    if isinstance(event, ReasoningDelta):
        text = quote(event.text)
        fields = ",".join(f'"{name}":{text}' for name in form.reasoning_names)
        return _choice(event.index, f"{{{fields}}}", "null", "null")
    if isinstance(event, ToolCallDelta) and form.is_old:
        return _choice(event.index, f'{{"function_call":{dump(_function(event))}}}', "null", "null")
    if isinstance(event, ToolCallDelta):
        call = dump({"index": event.call_index, **_call(event)})
        return _choice(event.index, f'{{"tool_calls":[{call}]}}', "null", "null")
    logprobs = dump(encode_logprobs(event.tokens)) if event.tokens else "null"
    return _choice(event.index, f'{{"content":{quote(event.text)}}}', logprobs, "null")


def _choice(index: int, delta: str, logprobs: str, reason: str) -> str:
    return f'"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}'


def _call(call: ToolCallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": _function(call)}


def _function(call: ToolCallDelta) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def _reason(event: Finished, form: AnswerForm) -> str:
    return "function_call" if form.is_old and event.reason == "tool_calls" else event.reason


def encode_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    return {"content": [encode_logprob(token) for token in tokens], "refusal": None}


def encode_logprob(token: TokenText) -> dict[str, Any]:
    return {**_token(token), "top_logprobs": [_token(one) for one in token.top]}


def _token(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.raw)}
